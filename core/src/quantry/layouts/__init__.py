"""The four layout families of the core: what their bytes mean and how they are sliced."""

from __future__ import annotations

from quantry.layouts.affine import GroupedAffine
from quantry.layouts.codebook import GroupedCodebook
from quantry.layouts.dense import Dense
from quantry.layouts.scaled_float import ScaledFloat

__all__ = ["Dense", "GroupedAffine", "GroupedCodebook", "ScaledFloat"]

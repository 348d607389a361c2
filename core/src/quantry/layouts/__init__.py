"""The layout families of the core: what their bytes mean and how they are sliced."""

from __future__ import annotations

from quantry.layouts.affine import GroupedAffine
from quantry.layouts.affine_panel import AffinePanel
from quantry.layouts.codebook import GroupedCodebook
from quantry.layouts.codebook_panel import CodebookPanel
from quantry.layouts.dense import Dense
from quantry.layouts.float_panel import FloatPanel
from quantry.layouts.scaled_float import ScaledFloat

__all__ = [
    "AffinePanel",
    "CodebookPanel",
    "Dense",
    "FloatPanel",
    "GroupedAffine",
    "GroupedCodebook",
    "ScaledFloat",
]

"""The grouped CPU kernels, compiled for codes of 1, 2, 3, 4 and 8 bits."""

from __future__ import annotations

from quantry import panel_conversions, panel_kernels
from quantry_hqq.native import LIBRARY

__all__ = ["CONVERSIONS", "KERNELS"]

KERNELS = panel_kernels(LIBRARY, "hqq", ("affine",))
CONVERSIONS = panel_conversions(LIBRARY, ("affine",))

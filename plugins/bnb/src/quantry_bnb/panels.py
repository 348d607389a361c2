"""CPU kernels on panels of nf4 and fp4 codes, and the packing of such panels."""

from __future__ import annotations

from quantry import panel_conversions, panel_kernels
from quantry_bnb.native import LIBRARY

__all__ = ["CONVERSIONS", "KERNELS"]

KERNELS = panel_kernels(LIBRARY, "bnb", ("codebook",))
CONVERSIONS = panel_conversions(LIBRARY, ("codebook",))

"""CPU kernels on affine panels of 2, 3, 4, 5, 6 and 8 bits, and the packing of such panels."""

from __future__ import annotations

from quantry import panel_conversions, panel_kernels
from quantry_afq_metal.native import LIBRARY

__all__ = ["CONVERSIONS", "KERNELS"]

KERNELS = panel_kernels(LIBRARY, "afq", ("affine",))
CONVERSIONS = panel_conversions(LIBRARY, ("affine",))

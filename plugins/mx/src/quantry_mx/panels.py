"""CPU kernels on panels of e2m1 and e4m3 floats, and the packing of such panels."""

from __future__ import annotations

from quantry import panel_conversions, panel_kernels
from quantry_mx.native import LIBRARY

__all__ = ["CONVERSIONS", "KERNELS"]

KERNELS = panel_kernels(LIBRARY, "mx", ("float",))
CONVERSIONS = panel_conversions(LIBRARY, ("float",))

"""Native kernels and packing for the panel layouts, through the library of whichever plugin compiled them."""

from __future__ import annotations

from quantry.panels.conversions import panel_conversions
from quantry.panels.kernels import panel_kernels

__all__ = ["panel_conversions", "panel_kernels"]

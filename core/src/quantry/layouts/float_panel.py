"""Scaled small floats in panels of 16 rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, ClassVar

from quantry.layout import Shape
from quantry.layouts.bitpack import pack, unpack
from quantry.layouts.grid import ceil_div
from quantry.layouts.panel import PanelLayout
from quantry.layouts.planes import CHUNK, ROWS
from quantry.layouts.scaled_float import Element, FloatScale, ScaledFloat

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FloatPanel"]


@dataclass(frozen=True, slots=True)
class FloatPanel(PanelLayout):
    """`float:…` in panels. Scales of blocks of several rows are the source's; such blocks hold whole panels.

    >>> str(FloatPanel("e2m1", (1, 16), "e4m3", outer=True))
    'float_panel:e2m1,1x16,e4m3,outer'
    """

    family: ClassVar[str] = "float_panel"

    element: Element
    block: tuple[int, int]
    scale: FloatScale
    outer: bool = False

    def __post_init__(self) -> None:
        self.source  # noqa: B018  the source checks the fields

    @classmethod
    def of(cls, layout: ScaledFloat) -> FloatPanel:
        """The panels of a layout."""
        return cls(layout.element, layout.block, layout.scale, layout.outer)

    @property
    def source(self) -> ScaledFloat:
        """`float` with these fields."""
        return ScaledFloat(self.element, self.block, self.scale, self.outer)

    @property
    def code_bits(self) -> int:
        """Four for e2m1, eight for the others."""
        return 4 if self.element == "e2m1" else 8

    def refusal(self, shape: Shape) -> str | None:
        """Blocks of several rows that cut a panel."""
        if self.block[0] != 1 and self.block[0] % ROWS:
            return f"blocks of {self.block[0]} rows are not whole panels of {ROWS}"
        return None

    def groups(self, k: int) -> int:
        """The last may be short."""
        return ceil_div(k, self.block[1]) if self.block[1] else 1

    def interleaves(self, name: str) -> bool:
        """The scales of blocks within a row."""
        return name == "scales" and self.block[0] == 1

    def unpacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """One byte a code."""
        return unpack(codes, self.code_bits, shape[-1])

    def repacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """One or two codes a byte."""
        return pack(codes, self.code_bits)

    def step(self, dim: int) -> int | None:
        """Whole panels of whole blocks along N, whole blocks of whole chunks along K."""
        rows, columns = self.block
        return lcm(rows or 1, ROWS) if dim == -2 else lcm(columns or 1, CHUNK)

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice; the scale of a whole dimension and `outer` stay as they are."""
        parts = self.cut(buffers, dim, start, length, self.block[1])
        size = self.block[dim]
        if self.block[0] != 1 and size:
            first, last = start // size, ceil_div(start + length, size)
            parts["scales"] = buffers["scales"].narrow(dim, first, last - first)
        return parts

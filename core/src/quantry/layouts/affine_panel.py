"""Grouped affine weights in panels of 16 rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import TYPE_CHECKING, ClassVar

from quantry.layout import Shape
from quantry.layouts.affine import Axis, GroupedAffine, ScaleType, Zero
from quantry.layouts.bitpack import pack, unpack
from quantry.layouts.grid import ceil_div
from quantry.layouts.panel import PanelLayout
from quantry.layouts.planes import CHUNK, ROWS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AffinePanel"]


@dataclass(frozen=True, slots=True)
class AffinePanel(PanelLayout):
    """`affine:…` in panels; two's complement codes (zero "none") are stored as q + 2^(bits-1).

    axis "out": a group is `group` rows N/group apart; they are stored together, as rows r, r + N/group, … for
    r = 0, 1, …, so N must be a multiple of the group and the group of 16. scales and zeros are the source's.

    >>> str(AffinePanel(4, 128, "in", "int", "f16", perm=True))
    'affine_panel:b4,g128,in,int,f16,perm'
    """

    family: ClassVar[str] = "affine_panel"

    bits: int = field(metadata={"prefix": "b"})
    group: int = field(metadata={"prefix": "g"})
    axis: Axis
    zero: Zero
    scale: ScaleType
    perm: bool = False

    def __post_init__(self) -> None:
        self.source  # noqa: B018  the source checks the fields

    @classmethod
    def of(cls, layout: GroupedAffine) -> AffinePanel:
        """The panels of a layout."""
        return cls(layout.bits, layout.group, layout.axis, layout.zero, layout.scale, layout.perm)

    @property
    def source(self) -> GroupedAffine:
        """`affine` with these fields."""
        return GroupedAffine(self.bits, self.group, self.axis, self.zero, self.scale, self.perm)

    @property
    def code_bits(self) -> int:
        """`bits`."""
        return self.bits

    def refusal(self, shape: Shape) -> str | None:
        """Axis "out" whose groups are no whole panels."""
        n = shape[-2]
        group = self.group or n
        if self.axis == "out" and group and n % group:
            return f"{n} rows are not a multiple of the group, so a group mixes columns"
        if self.axis == "out" and group % ROWS:
            return f"a group of {group} rows does not fill panels of {ROWS}"
        return None

    def groups(self, k: int) -> int:
        """The last may be short."""
        return ceil_div(k, self.group) if self.group else 1

    def interleaves(self, name: str) -> bool:
        """Scales and zeros of rows."""
        return self.axis == "in" and name != "perm" and name not in ("codes", "high", "top")

    def unpacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """One byte a code, counted from the smallest."""
        *lead, n, k = shape
        if self.axis == "in":
            q = unpack(codes, self.bits, k)
        else:
            group = self.group or n
            by_column = unpack(codes, self.bits, group).view(*lead, n // max(group, 1), k, group)
            q = by_column.transpose(-1, -2).reshape(shape)
        return q.bitwise_xor_(1 << (self.bits - 1)) if self.zero == "none" else q

    def repacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """A bit stream per row, or per column of a group."""
        *lead, n, k = shape
        if self.zero == "none":
            codes = codes ^ (1 << (self.bits - 1))
        if self.axis == "out":
            group = self.group or n
            codes = codes.view(*lead, n // max(group, 1), group, k).transpose(-1, -2).flatten(-3, -2)
        return pack(codes, self.bits)

    def step(self, dim: int) -> int | None:
        """Whole panels along N, whole groups of whole chunks along K."""
        if dim == -2:
            return ROWS if self.axis == "in" else None
        if self.perm:
            return None
        return lcm(self.group or 1, CHUNK) if self.axis == "in" else CHUNK

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice."""
        if self.step(dim) is None:
            raise self.no_slice(dim, "each group spans rows" if dim == -2 else "perm spreads columns")
        parts = self.cut(buffers, dim, start, length, self.group)
        if self.axis == "out":
            *lead, n, k = shape
            for name in buffers.keys() & {"scales", "zeros", "biases"}:
                by_row = buffers[name].view(*lead, n // max(self.group or n, 1), k)
                parts[name] = by_row.narrow(-1, start, length).flatten(-2)
        return parts

"""Codebook weights in panels of 16 rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import TYPE_CHECKING, ClassVar

from quantry.layout import Shape
from quantry.layouts.bitpack import pack, unpack
from quantry.layouts.codebook import NESTED_BLOCK, CodebookScale, CodebookTable, GroupedCodebook
from quantry.layouts.grid import ceil_div
from quantry.layouts.panel import PanelLayout
from quantry.layouts.planes import CHUNK, ROWS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CodebookPanel"]

_BITS = 4


@dataclass(frozen=True, slots=True)
class CodebookPanel(PanelLayout):
    """`codebook:…` in panels, for rows of whole blocks; the second level of nested scales is the source's.

    >>> str(CodebookPanel("nf4", 64, "nested", flat=True))
    'codebook_panel:nf4,g64,nested,flat'
    """

    family: ClassVar[str] = "codebook_panel"

    table: CodebookTable
    group: int = field(metadata={"prefix": "g"})
    scale: CodebookScale
    flat: bool = False

    def __post_init__(self) -> None:
        self.source  # noqa: B018  the source checks the fields

    @classmethod
    def of(cls, layout: GroupedCodebook) -> CodebookPanel:
        """The panels of a layout."""
        return cls(layout.table, layout.group, layout.scale, layout.flat)

    @property
    def source(self) -> GroupedCodebook:
        """`codebook` with these fields."""
        return GroupedCodebook(self.table, self.group, self.scale, self.flat)

    @property
    def code_bits(self) -> int:
        """Four: an index into 16 numbers."""
        return _BITS

    def refusal(self, shape: Shape) -> str | None:
        """Blocks that cross rows."""
        if shape[-1] % self.group:
            return f"rows of {shape[-1]} are not whole blocks of {self.group}: blocks cross rows"
        return None

    def groups(self, k: int) -> int:
        """Whole blocks."""
        return k // self.group

    def interleaves(self, name: str) -> bool:
        """The scales of blocks."""
        return name == "scales"

    def unpacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """One byte a code."""
        *lead, n, k = shape
        return unpack(codes.view(*lead, n, k // 2), _BITS, k)

    def repacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """Two codes a byte, in the source's shape."""
        return pack(codes, _BITS).view(self.source.buffers(shape)["codes"].shape)

    def step(self, dim: int) -> int | None:
        """Whole panels along N, 256 rows where 256 neighbouring scales share one; whole blocks along K."""
        if dim == -1:
            return None if self.flat or self.scale == "nested" else lcm(self.group, CHUNK)
        return NESTED_BLOCK if self.scale == "nested" else ROWS

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice; nested_offset stays as it is."""
        if self.step(dim) is None:
            raise self.no_slice(dim, "blocks, or blocks of blocks, are counted row after row")
        parts = self.cut(buffers, dim, start, length, self.group)
        if self.scale == "nested":
            blocks = shape[-1] // self.group
            first, last = start * blocks // NESTED_BLOCK, ceil_div((start + length) * blocks, NESTED_BLOCK)
            parts["nested_scales"] = buffers["nested_scales"].narrow(-1, first, last - first)
        return parts

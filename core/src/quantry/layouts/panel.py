"""What the three panel layouts share: codes in planes, scales interleaved, and the way back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from quantry.errors import ShapeError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.grid import ceil_div
from quantry.layouts.planes import (
    CHUNK,
    PLANES,
    ROWS,
    deinterleave,
    interleave,
    pack_planes,
    padded,
    plane_specs,
    unpack_planes,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PanelLayout"]


class PanelLayout(Layout):
    """The bits of `source` with 16 rows interleaved, as CPU kernels stream them; never written to a file.

    ```
    codes, high, top   uint8 [*, P, bytes]   planes of the codes (planes.py), P = ceil(N/16)
    scales, zeros …          [*, P, G, 16]   where the source has [*, N, G]
    ```
    Buffers that belong to no single row keep the source's shape. Text form and fields are the source's, the
    family is the source's with `_panel`.
    """

    __slots__ = ()

    storable: ClassVar[bool] = False

    @property
    @abstractmethod
    def source(self) -> Layout:
        """The layout whose bits these are; `dequantize` is its."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of a code."""

    @abstractmethod
    def unpacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """The source's buffer `codes`, one byte a code: uint8 [*, N, K], rows in the order of the panels."""

    @abstractmethod
    def repacked(self, codes: Tensor, shape: Shape) -> Tensor:
        """The inverse of `unpacked`."""

    @abstractmethod
    def interleaves(self, name: str) -> bool:
        """Whether the source's buffer `name` has numbers of one row, which are stored with 16 rows
        together."""

    @abstractmethod
    def groups(self, k: int) -> int:
        """Scales of a row of `k` columns, where a row has its own."""

    @abstractmethod
    def refusal(self, shape: Shape) -> str | None:
        """The sentence why a shape that the source holds has no panels, or None."""

    def why_not(self, shape: Shape) -> str | None:
        """Refuses what the source does, and what the family's panels do not hold."""
        return self.source.why_not(shape) or self.refusal(shape)

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """The planes, then the source's other buffers in its order."""
        found = plane_specs(self.code_bits, shape)
        *lead, n, k = shape
        for name, spec in self.source.buffers(shape).items():
            if name != "codes" and self.interleaves(name):
                spec = BufferSpec(spec.dtype, (*lead, ceil_div(n, ROWS), self.groups(k), ROWS))
            if name != "codes":
                found[name] = spec
        return found

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Back to the source's order, bit for bit, and from there by its definition."""
        sides = self.sides_of_rows(buffers, shape)
        return self.source.dequantize({"codes": self.codes(buffers, shape), **sides}, shape)

    def planes(self, codes: Tensor, shape: Shape) -> dict[str, Tensor]:
        """The source's buffer `codes` as planes: the definition that native packing is tested against."""
        return pack_planes(self.unpacked(codes, shape), self.code_bits)

    def packed(self, buffers: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """All buffers of the source as panels."""
        return {**self.planes(buffers["codes"], shape), **self.sides(buffers, shape)}

    def codes(self, planes: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The inverse of `planes`: the source's buffer `codes`."""
        return self.repacked(unpack_planes(planes, self.code_bits, *shape[-2:]), shape)

    def sides(self, buffers: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """The source's buffers but for the codes, as the panels have them."""
        rows = (*shape[:-1], self.groups(shape[-1]))
        return {
            name: interleave(buffers[name].view(rows)) if self.interleaves(name) else buffers[name]
            for name in self.source.buffers(shape)
            if name != "codes"
        }

    def sides_of_rows(self, buffers: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """The inverse of `sides`."""
        return {
            name: deinterleave(buffers[name], shape[-2]).view(spec.shape)
            if self.interleaves(name)
            else buffers[name]
            for name, spec in self.source.buffers(shape).items()
            if name != "codes"
        }

    def cut(
        self, buffers: Mapping[str, Tensor], dim: int, start: int, length: int, group: int
    ) -> dict[str, Tensor]:
        """Planes and interleaved buffers of a slice, as views; `group` 0 has one scale a row."""
        parts = dict(buffers)
        first, panels = start // ROWS, ceil_div(length, ROWS)
        for name in buffers:
            width = PLANES[self.code_bits].get(name)
            if dim == -2 and (width or self.interleaves(name)):
                parts[name] = buffers[name].narrow(-2 if width else -3, first, panels)
            elif dim == -1 and width:
                column_bytes = ROWS * width // 8
                parts[name] = buffers[name].narrow(
                    -1, start * column_bytes, padded(length, CHUNK) * column_bytes
                )
            elif dim == -1 and group and self.interleaves(name):
                parts[name] = buffers[name].narrow(-2, start // group, ceil_div(length, group))
        return parts

    def no_slice(self, dim: int, reason: str) -> ShapeError:
        """The error for a dimension that cannot be sliced."""
        return ShapeError(f"{self} cannot be sliced along dimension {dim}: {reason}")

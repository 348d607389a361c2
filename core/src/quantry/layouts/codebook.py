"""Four-bit indices into a table of 16 numbers, scaled per block: NF4, FP4, IQ4_NL, MXFP4 elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from quantry.errors import ShapeError, UsageError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.bitpack import unpack
from quantry.layouts.grid import ceil_div, check_choice, matrix_why_not, split_axis
from quantry.layouts.tables import look_up

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CodebookScale", "CodebookTable", "GroupedCodebook"]

CodebookTable = Literal["nf4", "fp4", "iq4_nl", "e2m1"]
CodebookScale = Literal["f32", "f16", "nested"]

NESTED_BLOCK = 256  # scales per second-level scale, bitsandbytes' only value


@dataclass(frozen=True, slots=True)
class GroupedCodebook(Layout):
    """`table[code] * scale`, one scale per `group` weights; the 16 values of each table are in tables.py.

    ```
    codes   uint8 [*, N, K/2]       byte j of a row:  bits 0-3 = code of column 2j, bits 4-7 = of column 2j+1
    scales        [*, N, K/group]   f32 or f16; the product is float32
    ```
    K is a multiple of the group. `flat` holds any shape, as bitsandbytes counts: blocks run over the
    flattened matrix, cross rows, and the last may be short. Where rows are whole blocks the bytes are equal.
    ```
    codes   uint8 [*, ceil(N*K/2)]      weight f = row*K + column is in byte f // 2 and block f // group
    scales        [*, ceil(N*K/group)]
    ```
    bitsandbytes files store the *high* nibble first: a loader swaps nibbles.

    scale "nested" is double quantization of a matrix's B scales in order; product, then sum, in float32:
    ```
    scale[i] = dynamic[scales[i]] * nested_scales[i // 256] + nested_offset
    scales         uint8   [*, N, K/group] or flat [*, B]
    nested_scales  float32 [*, ceil(B/256)]
    nested_offset  float32 [*]          dynamic = tables.dynamic_map(), a constant of the layout
    ```
    Leading dimensions (experts) stand before every buffer. Source: bitsandbytes/functional.py.

    >>> str(GroupedCodebook("nf4", 64, "nested"))
    'codebook:nf4,g64,nested'
    """

    family: ClassVar[str] = "codebook"
    TABLES: ClassVar[tuple[CodebookTable, ...]] = get_args(CodebookTable)
    SCALES: ClassVar[tuple[CodebookScale, ...]] = get_args(CodebookScale)

    table: CodebookTable
    group: int = field(metadata={"prefix": "g"})
    scale: CodebookScale
    flat: bool = False

    def __post_init__(self) -> None:
        check_choice("GroupedCodebook", "table", self.table, self.TABLES)
        check_choice("GroupedCodebook", "scale", self.scale, self.SCALES)
        if self.group < 2 or self.group % 2:
            raise UsageError(f"GroupedCodebook: the group is an even number of weights, not {self.group}")

    def why_not(self, shape: Shape) -> str | None:
        """Refuses what is not a matrix and, unless flat, rows that are not whole blocks."""
        reason = matrix_why_not(shape)
        if reason is None and not self.flat and shape[-1] % self.group:
            reason = f"rows of {shape[-1]} are not whole blocks of {self.group}; the flat form holds them"
        return reason

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`codes`, `scales`; for nested also `nested_scales`, `nested_offset`."""
        *lead, n, k = shape
        blocks = ceil_div(n * k, self.group)
        codes = (*lead, ceil_div(n * k, 2)) if self.flat else (*lead, n, k // 2)
        scales = (*lead, blocks) if self.flat else (*lead, n, k // self.group)
        specs = {
            "codes": BufferSpec("u8", codes),
            "scales": BufferSpec("u8" if self.scale == "nested" else self.scale, scales),
        }
        if self.scale == "nested":
            specs["nested_scales"] = BufferSpec("f32", (*lead, ceil_div(blocks, NESTED_BLOCK)))
            specs["nested_offset"] = BufferSpec("f32", tuple(lead))
        return specs

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Float32 [*shape]: one product per weight."""
        row = shape[-2] * shape[-1] if self.flat else shape[-1]
        blocks = split_axis(look_up(unpack(buffers["codes"], 4, row), self.table), -1, self.group)
        blocks *= self.block_scales(buffers).unsqueeze(-1)
        return blocks.flatten(-2)[..., :row].reshape(shape)

    def block_scales(self, buffers: Mapping[str, Tensor]) -> Tensor:
        """Float32 scale of every block, in the shape of `scales`, double quantization undone."""
        import torch

        stored = buffers["scales"]
        if self.scale != "nested":
            return stored.to(torch.float32)
        coarse, offset = buffers["nested_scales"], buffers["nested_offset"]
        fine = look_up(stored, "dynamic").flatten(offset.ndim)  # [*, B]
        blocks = split_axis(fine, -1, NESTED_BLOCK)
        blocks *= coarse.unsqueeze(-1)
        blocks += offset.unsqueeze(-1).unsqueeze(-1)
        return blocks.flatten(-2)[..., : fine.shape[-1]].reshape(stored.shape)

    def step(self, dim: int) -> int | None:
        """Rows: 1; times group if flat, times 256 if nested, so that no K cuts a block. Columns: a block."""
        if dim == -1:
            return None if self.flat or self.scale == "nested" else self.group
        return (self.group if self.flat else 1) * (NESTED_BLOCK if self.scale == "nested" else 1)

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice; nested_offset stays as it is."""
        if self.step(dim) is None:
            why = "blocks cross rows" if self.flat else f"{NESTED_BLOCK} neighbouring scales share one scale"
            raise ShapeError(f"{self} cannot be sliced along in_features: {why}")
        parts = dict(buffers)
        per_item = {"codes": 2, "scales": self.group}  # weights per byte, per scale
        if dim == -1:
            for name, size in per_item.items():
                parts[name] = buffers[name].narrow(-1, start // size, length // size)
            return parts
        if not self.flat:
            for name in per_item:
                parts[name] = buffers[name].narrow(-2, start, length)
            per_item = {}
        if self.scale == "nested":
            per_item["nested_scales"] = self.group * NESTED_BLOCK
        first, last = start * shape[-1], (start + length) * shape[-1]
        for name, size in per_item.items():
            parts[name] = buffers[name].narrow(-1, first // size, ceil_div(last, size) - first // size)
        return parts

"""Small floats with a scale per block: FP8 per tensor, channel and block, MXFP8, MXFP4, NVFP4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from quantry.errors import UsageError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.bitpack import unpack
from quantry.layouts.grid import ceil_div, check_choice, matrix_why_not, split_axis
from quantry.layouts.tables import look_up

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Element", "FloatScale", "ScaledFloat"]

Element = Literal["e4m3", "e5m2", "e2m1"]
FloatScale = Literal["f32", "bf16", "e8m0", "e4m3"]


@dataclass(frozen=True, slots=True)
class ScaledFloat(Layout):
    """`element * (scale * outer)`: a scale per block of `block` = (rows, columns), 0 for the whole dimension.

    ```
    codes   uint8 [*, N, K]              e4m3 (FN: no inf, NaN 0x7F and 0xFF), e5m2 (IEEE)
            uint8 [*, N, ceil(K/2)]      e2m1; byte j: bits 0-3 = column 2j, bits 4-7 = column 2j+1
    scales        [*, ceil(N/rows), ceil(K/columns)]   weight (n, k) uses scale (n // rows, k // columns)
    outer   float32 [*]                  only with `outer`: NVFP4's second scale, one per matrix
    ```
    Scales of type e8m0 (2^(s-127), 0xFF is NaN) and e4m3 are uint8 buffers. Blocks at the edges may be short,
    as in FP8 checkpoints. NaN codes give NaN. Products in float32, scale * outer first, as in ModelOpt.
    Leading dimensions (experts) stand before every buffer. Sources: OCP MX 1.0; DeepSeek-V3 and ModelOpt
    checkpoints.

    ```
    float:e4m3,0x0,f32            FP8 per tensor         float:e4m3,1x32,e8m0         MXFP8
    float:e4m3,1x0,f32            FP8 per channel        float:e2m1,1x32,e8m0         MXFP4
    float:e4m3,128x128,f32        FP8 DeepSeek blocks    float:e2m1,1x16,e4m3,outer   NVFP4
    ```
    """

    family: ClassVar[str] = "float"
    ELEMENTS: ClassVar[tuple[Element, ...]] = get_args(Element)
    SCALES: ClassVar[tuple[FloatScale, ...]] = get_args(FloatScale)

    element: Element
    block: tuple[int, int]
    scale: FloatScale
    outer: bool = False

    def __post_init__(self) -> None:
        check_choice("ScaledFloat", "element", self.element, self.ELEMENTS)
        check_choice("ScaledFloat", "scale", self.scale, self.SCALES)
        if len(self.block) != 2 or min(self.block) < 0:
            raise UsageError(
                f"ScaledFloat: block {'x'.join(str(b) for b in self.block)} is not rows x columns",
                hint="Write 128x128; 0 stands for the whole dimension.",
            )

    def why_not(self, shape: Shape) -> str | None:
        """Refuses only what is not a matrix."""
        return matrix_why_not(shape)

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`codes`, `scales`, and `outer` where the layout has one."""
        *lead, n, k = shape
        rows, columns = self.block
        grid = (ceil_div(n, rows) if rows else 1, ceil_div(k, columns) if columns else 1)
        specs = {
            "codes": BufferSpec("u8", (*lead, n, ceil_div(k, self._codes_per_byte))),
            "scales": BufferSpec("u8" if self.scale in ("e8m0", "e4m3") else self.scale, (*lead, *grid)),
        }
        if self.outer:
            specs["outer"] = BufferSpec("f32", tuple(lead))
        return specs

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Float32 [*shape]: NaN where a code or its scale is NaN."""
        n, k = shape[-2:]
        rows, columns = (min(b or size, size) or 1 for b, size in zip(self.block, (n, k), strict=True))
        codes = buffers["codes"] if self._codes_per_byte == 1 else unpack(buffers["codes"], 4, k)
        numbers = look_up(codes, self.element)
        # [*, N/rows, rows, K/columns, columns]
        blocks = split_axis(split_axis(numbers, -1, columns), -3, rows)
        blocks *= self.block_scales(buffers).unsqueeze(-2).unsqueeze(-1)
        padded = blocks.flatten(-2).flatten(-3, -2)  # [*, N, K], short blocks filled up
        return padded[..., :n, :k].contiguous()

    def block_scales(self, buffers: Mapping[str, Tensor]) -> Tensor:
        """Float32 scale of every block [*, N/rows, K/columns], `outer` included."""
        import torch

        stored = buffers["scales"]
        scales = look_up(stored, self.scale) if stored.dtype == torch.uint8 else stored.to(torch.float32)
        return scales * buffers["outer"].unsqueeze(-1).unsqueeze(-1) if self.outer else scales

    def step(self, dim: int) -> int | None:
        """One block; 1 where the block is the whole dimension; columns of e2m1 in pairs."""
        rows, columns = self.block
        return rows or 1 if dim == -2 else lcm(columns or 1, self._codes_per_byte)

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice; the scale of a whole dimension and `outer` stay as they are."""
        parts = dict(buffers)
        per_item = {"codes": 1 if dim == -2 else self._codes_per_byte, "scales": self.block[dim]}
        for name, size in per_item.items():
            if size:
                first, last = start // size, ceil_div(start + length, size)
                parts[name] = buffers[name].narrow(dim, first, last - first)
        return parts

    @property
    def _codes_per_byte(self) -> int:
        return 2 if self.element == "e2m1" else 1

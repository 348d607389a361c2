"""f8q8: mistral.rs' blocks of 32 int8 codes with an e4m3 scale, and their panels for kernels."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quantry import BufferSpec, Conversion, GroupedAffine, Layout, QuantizedTensor, Shape, registry
from quantry_fp8.native import LIBRARY

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CONVERSIONS", "LAYOUTS", "F8q8", "F8q8Panel", "panels"]

BLOCK, BLOCK_BYTES = 32, 33
MOST = 416.0  # what mistral.rs takes for the largest e4m3 number


@dataclass(frozen=True, slots=True)
class F8q8(Layout):
    """`q * (e4m3 / 416)`, both operations rounded to float32, one scale per 32 weights of a flattened matrix.

    ```
    blocks  uint8 [*, ceil(N*K/32), 33]     byte 0 = scale (e4m3), bytes 1-32 = codes (int8)
    ```
    Blocks cross rows where K is no multiple of 32; the last one is filled up. Leading dimensions (experts)
    stand in front. Source: mistral.rs, mistralrs-quant/src/f8q8/mod.rs.

    >>> str(F8q8())
    'f8q8:'
    """

    family: ClassVar[str] = "f8q8"
    growth: ClassVar[float] = 1.1  # the panels keep the scales as float32: 9 instead of 8.25 bits a weight

    def why_not(self, shape: Shape) -> str | None:
        """Refuses what is not a matrix."""
        return _affine().why_not(shape)

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`blocks`."""
        *lead, n, k = shape
        return {"blocks": BufferSpec("u8", (*lead, -(-n * k // BLOCK), BLOCK_BYTES))}

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Float32 [*shape]; NaN where the scale is."""
        *lead, n, k = shape
        codes, scales = _split(buffers["blocks"])
        values = codes.float().mul_(scales.unsqueeze(-1)).flatten(-2)
        return values[..., : n * k].reshape(*lead, n, k)

    def step(self, dim: int) -> int | None:
        """Rows by 32, which are whole blocks for any K."""
        return BLOCK if dim == -2 else None

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """A view of the slice."""
        if dim != -2:
            return Layout.narrow(self, buffers, shape, dim, start, length)
        k = shape[-1]
        return {"blocks": buffers["blocks"].narrow(-2, start * k // BLOCK, -(-length * k // BLOCK))}


@dataclass(frozen=True, slots=True)
class F8q8Panel(Layout):
    """f8q8 with rows of whole blocks as kernels take it: the buffers of `affine_panel:b8,g32,in,none,f32`."""

    family: ClassVar[str] = "f8q8_panel"
    storable: ClassVar[bool] = False

    def why_not(self, shape: Shape) -> str | None:
        """Refuses rows that are not whole blocks."""
        reason = panels().why_not(shape)
        if reason is None and shape[-1] % BLOCK:
            reason = f"rows of {shape[-1]} are not whole blocks of {BLOCK}"
        return reason

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`codes`, `scales`."""
        return panels().buffers(shape)

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Float32 [*shape]."""
        return panels().dequantize(buffers, shape)

    def step(self, dim: int) -> int | None:
        """Whole panels and whole blocks."""
        return panels().step(dim)

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice."""
        return panels().narrow(buffers, shape, dim, start, length)


class PackF8q8(Conversion):
    """Blocks to panels, scales widened to float32."""

    source, target = "f8q8", "f8q8_panel"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The panels, where rows are whole blocks and the native library is there."""
        fits = isinstance(layout, F8q8) and F8q8Panel().why_not(shape) is None and LIBRARY.why_not() is None
        return F8q8Panel() if fits else None

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Into fresh memory."""
        import torch

        *lead, n, k = qt.shape
        codes, scales = _split(qt.buffers["blocks"])
        affine = {
            "codes": codes.contiguous().view(torch.uint8).reshape(*lead, n, k),
            "scales": scales.reshape(*lead, n, k // BLOCK),
        }
        packed = QuantizedTensor(_affine(), qt.shape, affine).convert(panels())
        return QuantizedTensor(target, qt.shape, packed.buffers)


class UnpackF8q8(Conversion):
    """Panels to the blocks they were made of."""

    source, target = "f8q8_panel", "f8q8"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """`f8q8:`."""
        return F8q8() if isinstance(layout, F8q8Panel) and layout.why_not(shape) is None else None

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Into fresh memory."""
        import torch

        affine = QuantizedTensor(panels(), qt.shape, qt.buffers).convert(_affine()).buffers
        # scale * 416 is within a unit of the number it came from, which is then the nearest e4m3
        scales = (affine["scales"] * MOST).to(torch.float8_e4m3fn).view(torch.uint8)
        spec = target.buffers(qt.shape)["blocks"]
        blocks = affine["codes"].new_empty(spec.shape)
        blocks[..., 0] = scales.flatten(-2)
        blocks[..., 1:] = affine["codes"].reshape(*spec.shape[:-1], BLOCK)
        return QuantizedTensor(target, qt.shape, {"blocks": blocks})


@functools.cache
def panels() -> Layout:
    """What kernels run f8q8 as."""
    return registry().layout("affine_panel:b8,g32,in,none,f32")


def _affine() -> GroupedAffine:
    return GroupedAffine(8, BLOCK, "in", "none", "f32")


def _split(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [*, B, 32] as a view and float32 scales [*, B]."""
    import torch

    scales = blocks[..., 0].contiguous().view(torch.float8_e4m3fn).float()
    return blocks[..., 1:].view(torch.int8), scales / MOST


LAYOUTS = [F8q8, F8q8Panel]
CONVERSIONS: list[Conversion] = [PackF8q8(), UnpackF8q8()]

"""UQFF tag 6: MXFP4 codes and scales as they are (mistral.rs, uqff-format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry import BufferSpec, HeaderError, Layout, QuantizedTensor, ScaledFloat, Shape, UqffCodec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODECS", "Mxfp4Codec"]

_LAYOUT = ScaledFloat("e2m1", (1, 32), "e8m0")
_RANKS = (2, 3)


class Mxfp4Codec(UqffCodec):
    """Tag 6: `""` U8 [..., K/2], `.scales` U8 [..., K/32]."""

    tag = 6
    family = "float"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """None for MXFP4 matrices of whole blocks, and for stacks of them."""
        if layout != _LAYOUT:
            return f"UQFF tag 6 stores MXFP4, {_LAYOUT}, not {layout}"
        if len(shape) not in _RANKS:
            return f"UQFF tag 6 stores matrices and stacks of them, not {len(shape)} dimension(s)"
        if shape[-1] % 32:
            return f"UQFF tag 6 needs columns that are a multiple of 32, got {shape[-1]}"
        return None

    def label(self, layout: Layout) -> str:
        """`mxfp4`."""
        return "mxfp4"

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Two entries, in this order."""
        *lead, columns = shape
        return {
            "": BufferSpec("u8", (*lead, columns // 2)),
            ".scales": BufferSpec("u8", (*lead, columns // 32)),
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The buffers as they are; nothing is copied."""
        return {"": qt.buffers["codes"], ".scales": qt.buffers["scales"]}

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """`float:e2m1,1x32,e8m0`."""
        for suffix in ("", ".scales"):
            if suffix not in specs:
                raise HeaderError(f"UQFF tag 6 needs the entry `weight{suffix}`")
            spec = specs[suffix]
            if spec.dtype != "u8" or len(spec.shape) not in _RANKS:
                raise HeaderError(
                    f"`weight{suffix}` must be u8 of rank 2 or 3, found {spec.dtype} {list(spec.shape)}"
                )
        codes, scales = specs[""].shape, specs[".scales"].shape
        if codes != (*scales[:-1], scales[-1] * 16):
            raise HeaderError(
                f"blocks of 16 bytes with a scale each: `weight` {list(codes)} does not fit"
                f" `weight.scales` {list(scales)}"
            )
        return _LAYOUT, (*codes[:-1], codes[-1] * 2)

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """Views of the entries."""
        buffers = {"codes": entries[""], "scales": entries[".scales"]}
        return self.from_buffers(layout, shape, buffers)


CODECS = [Mxfp4Codec()]

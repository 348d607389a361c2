"""UQFF tag 2: HQQ as mistral.rs stores it (mistralrs-quant/src/hqq/mod.rs)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry import (
    BufferSpec,
    FormatError,
    GroupedAffine,
    HeaderError,
    Layout,
    QuantizedTensor,
    Shape,
    UqffCodec,
    pack_codes,
    unpack_codes,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODECS", "HqqCodec"]

_GROUP = 64
_BITS = (4, 8)

# suffix → element type and value of what describes the quantizer; `.bits` is 4 or 8, the others are read with
# any value but these, which decide what the bytes mean
_FACTS = {
    ".bits": ("u8", None),
    ".group_size": ("u32", _GROUP),
    ".axis": ("u8", 0),
    ".optimization_steps": ("u32", 10),
    ".round_zeros": ("u8", 0),
    ".channel_wise": ("u8", 1),
}
_DECIDING = (".group_size", ".axis", ".channel_wise")


class HqqCodec(UqffCodec):
    """Tag 2: `""` U8 slabs of W.view(64, C), `.scales`, `.zeros` F32 [1, C], and seven facts.

    ```
    4 bits   u8 [32, C]   byte (r, c):  bits 4-7 = code (r, c), bits 0-3 = code (r + 32, c)
    8 bits   u8 [64, C]
    ```
    """

    tag = 2
    family = "affine"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """None for matrices of 4- or 8-bit codes with float zeros, groups of 64 across rows."""
        if layout not in [_layout(bits) for bits in _BITS]:
            return f"UQFF tag 2 stores {_layout(4)} and {_layout(8)}, not {layout}"
        return self.matrix_refusal(layout, shape)

    def label(self, layout: Layout) -> str:
        """`hqq4`, `hqq8`."""
        return f"hqq{getattr(layout, 'bits', '')}"

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Ten entries, in this order."""
        bits = layout.bits  # type: ignore[attr-defined]
        columns = math.prod(shape) // _GROUP
        return {
            "": BufferSpec("u8", (_GROUP * bits // 8, columns)),
            ".scales": BufferSpec("f32", (1, columns)),
            ".zeros": BufferSpec("f32", (1, columns)),
            ".shape": BufferSpec("u32", (len(shape),)),
            **{suffix: BufferSpec(dtype, ()) for suffix, (dtype, _) in _FACTS.items()},
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """Codes in slabs; scales and zeros as they are."""
        import torch

        bits = qt.layout.bits  # type: ignore[attr-defined]
        codes = unpack_codes(qt.buffers["codes"], bits, _GROUP).T  # [64, C]
        if bits == 4:
            codes = codes[: _GROUP // 2] << 4 | codes[_GROUP // 2 :]
        kinds = {"u8": torch.uint8, "u32": torch.uint32}
        return {
            "": codes.contiguous(),
            ".scales": qt.buffers["scales"].view(1, -1),
            ".zeros": qt.buffers["zeros"].view(1, -1),
            ".shape": torch.tensor(qt.shape, dtype=torch.uint32),
            **{
                suffix: torch.tensor(bits if value is None else value, dtype=kinds[dtype])
                for suffix, (dtype, value) in _FACTS.items()
            },
        }

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """`affine:b4,g64,out,float,f32` or that of 8 bits."""
        self.expect(specs, {suffix: BufferSpec(dtype, ()) for suffix, (dtype, _) in _FACTS.items()})
        if ".shape" not in specs or ".shape" not in small:
            raise HeaderError("UQFF tag 2 needs the entry `weight.shape`, of a few numbers")
        self.expect(specs, {".shape": BufferSpec("u32", (small[".shape"].numel(),))})
        for suffix in _DECIDING:
            found, wanted = int(small[suffix].item()), _FACTS[suffix][1]
            if found != wanted:
                raise HeaderError(f"`weight{suffix}` is {found}; every HQQ layer of UQFF has {wanted}")
        bits = int(small[".bits"].item())
        if bits not in _BITS:
            raise HeaderError(f"`weight.bits` is {bits}; HQQ layers of UQFF have 4 or 8")
        layout, shape = _layout(bits), tuple(int(n) for n in small[".shape"].reshape(-1).tolist())
        reason = self.why_not(layout, shape)
        if reason is not None:
            raise HeaderError(f"`weight.shape` is {list(shape)}: {reason}")
        self.expect(specs, self.entries(layout, shape))
        return layout, shape

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """Codes as a bit stream a group, in fresh memory; scales and zeros shared."""
        import torch

        bits = layout.bits  # type: ignore[attr-defined]
        slabs = entries[""]
        expected = self.entries(layout, shape)[""].shape
        if tuple(slabs.shape) != expected:
            raise FormatError(f"`weight` must be {list(expected)}, found {list(slabs.shape)}")
        codes = torch.cat([slabs >> 4, slabs & 15]) if bits == 4 else slabs
        buffers = {
            "codes": pack_codes(codes.T.contiguous(), bits),
            "scales": entries[".scales"].view(-1),
            "zeros": entries[".zeros"].view(-1),
        }
        return QuantizedTensor(layout, shape, buffers)


def _layout(bits: int) -> GroupedAffine:
    return GroupedAffine(bits, _GROUP, "out", "float", "f32")


CODECS = [HqqCodec()]

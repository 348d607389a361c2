"""UQFF tags 3 (fp8) and 5 (f8q8), as mistral.rs stores them (mistralrs-quant/src/{fp8,f8q8}/mod.rs)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry import (
    BufferSpec,
    FormatError,
    HeaderError,
    Layout,
    QuantizedTensor,
    ScaledFloat,
    Shape,
    UqffCodec,
)
from quantry_fp8.f8q8 import BLOCK_BYTES, F8q8

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODECS", "F8q8Codec", "Fp8Codec", "quant_scale"]

_E4M3_CODE = 9  # mistral.rs' number of the type
_LAYOUT = ScaledFloat("e4m3", (0, 0), "f32")
_NEAR = 2.0**-7  # a quotient rounded to bfloat16 is this near


class Fp8Codec(UqffCodec):
    """Tag 3: `""` F8_E4M3 [N, K], three F32 scalars, `.dtype` U32 scalar.

    `.dequant_w_scale` is the scale; `.dequant_x_scale` a copy of it and `.quant_scale` its inverse, so the
    three come back as they were.
    """

    tag = 3
    family = "float"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """None for matrices of e4m3 with one float32 scale."""
        if layout != _LAYOUT:
            return f"UQFF tag 3 stores {_LAYOUT}, not {layout}"
        return self.matrix_refusal(layout, shape)

    def label(self, layout: Layout) -> str:
        """`fp8`."""
        return "fp8"

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Five entries, in this order."""
        return {
            "": BufferSpec("f8_e4m3", shape),
            ".dequant_w_scale": BufferSpec("f32", ()),
            ".dequant_x_scale": BufferSpec("f32", ()),
            ".quant_scale": BufferSpec("f32", ()),
            ".dtype": BufferSpec("u32", ()),
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The codes as they are."""
        import torch

        scale = qt.buffers["scales"].view(())
        return {
            "": qt.buffers["codes"].view(torch.float8_e4m3fn),
            ".dequant_w_scale": scale,
            ".dequant_x_scale": scale.clone(),
            ".quant_scale": torch.tensor(quant_scale(scale.item()), dtype=torch.float32),
            ".dtype": torch.tensor(_E4M3_CODE, dtype=torch.uint32),
        }

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """`float:e4m3,0x0,f32`."""
        shape = specs[""].shape if "" in specs else ()
        self.expect(specs, self.entries(_LAYOUT, shape))
        code = int(small[".dtype"].item())
        if code != _E4M3_CODE:
            raise HeaderError(f"`weight.dtype` is {code}; every FP8 layer of UQFF has {_E4M3_CODE}")
        down, up = (float(small[f".{name}"].item()) for name in ("dequant_w_scale", "quant_scale"))
        if not math.isfinite(down) or not math.isfinite(up) or (down and abs(down * up - 1) > _NEAR):
            raise HeaderError(
                f"`weight.dequant_w_scale` is {down} and `weight.quant_scale` {up}: no inverses"
            )
        reason = self.why_not(_LAYOUT, shape)
        if reason is not None:
            raise HeaderError(f"`weight` is {list(shape)}: {reason}")
        return _LAYOUT, shape

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """A view of the codes."""
        import torch

        scale = entries[".dequant_w_scale"].reshape(1, 1)
        return QuantizedTensor(layout, shape, {"codes": entries[""].view(torch.uint8), "scales": scale})


class F8q8Codec(UqffCodec):
    """Tag 5: `""` U8 [33 * blocks], `.num_blocks` U32 scalar, `.shape` U32 [2]."""

    tag = 5
    family = "f8q8"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """None for matrices."""
        return self.matrix_refusal(layout, shape)

    def label(self, layout: Layout) -> str:
        """`f8q8`."""
        return "f8q8"

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Three entries, in this order."""
        return {
            "": BufferSpec("u8", (layout.nbytes(shape),)),
            ".num_blocks": BufferSpec("u32", ()),
            ".shape": BufferSpec("u32", (len(shape),)),
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The blocks as they are."""
        import torch

        blocks = qt.buffers["blocks"]
        return {
            "": blocks.view(-1),
            ".num_blocks": torch.tensor(len(blocks), dtype=torch.uint32),
            ".shape": torch.tensor(qt.shape, dtype=torch.uint32),
        }

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """`f8q8:`."""
        if ".shape" not in specs or ".shape" not in small:
            raise HeaderError("UQFF tag 5 needs the entry `weight.shape`, of a few numbers")
        layout, shape = F8q8(), tuple(int(n) for n in small[".shape"].reshape(-1).tolist())
        self.expect({".shape": specs[".shape"]}, {".shape": BufferSpec("u32", (len(shape),))})
        reason = self.why_not(layout, shape)
        if reason is not None:
            raise HeaderError(f"`weight.shape` is {list(shape)}: {reason}")
        self.expect(specs, self.entries(layout, shape))
        found, blocks = int(small[".num_blocks"].item()), layout.nbytes(shape) // BLOCK_BYTES
        if found != blocks:
            raise HeaderError(f"`weight.num_blocks` is {found}; {list(shape)} has {blocks} blocks of 32")
        return layout, shape

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """A view of the blocks."""
        spec, raw = layout.buffers(shape)["blocks"], entries[""]
        if raw.numel() != spec.nbytes:
            raise FormatError(f"{layout} {list(shape)} takes {spec.nbytes} bytes, `weight` has {raw.numel()}")
        return QuantizedTensor(layout, shape, {"blocks": raw.view(spec.shape)})


def quant_scale(scale: float) -> float:
    """What codes were multiplied by to get them, from the float32 `scale` they are multiplied by; 0 for 0.

    mistral.rs makes `scale` as the float32 inverse of a bfloat16 number, which is the nearest one to the
    inverse of `scale`; where it is not, the float32 inverse.
    """
    import torch

    if scale == 0:
        return 0.0
    down = torch.tensor(scale, dtype=torch.float32)
    up = down.reciprocal()
    short = up.bfloat16().float()
    return float(short if short.reciprocal() == down else up)


CODECS: list[UqffCodec] = [Fp8Codec(), F8q8Codec()]

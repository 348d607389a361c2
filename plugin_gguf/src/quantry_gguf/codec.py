"""UQFF tag 0: ggml blocks as one byte string, a type code and a shape (mistral.rs, uqff-format.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry import (
    BufferSpec,
    Dense,
    FormatError,
    HeaderError,
    Layout,
    QuantizedTensor,
    Shape,
    UqffCodec,
    torch_dtype,
)
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_ID, BY_NAME, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODECS", "GgufCodec"]

# the type codes mistral.rs reads in tag 0; every other code is refused there
_BLOCK_TYPES = frozenset(
    ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k"]
)
_FLOAT_TYPES = frozenset({"f32", "f16", "bf16"})

_MAX_DIM = 2**32 - 1  # `.shape` is U32


class GgufCodec(UqffCodec):
    """Tag 0: `""` U8 [nbytes], `.dtype` U32 scalar (ggml code), `.shape` U32 [rank]."""

    tag = 0
    family = "ggml"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """None for the types mistral.rs knows, dense f32, f16 and bf16 among them."""
        if _type_name(layout) is None:
            known = ", ".join(sorted(_BLOCK_TYPES | _FLOAT_TYPES))
            return f"UQFF tag 0 has no code for {layout}: it stores {known}"
        if not shape:
            return "UQFF tag 0 needs at least one dimension"
        if max(shape) > _MAX_DIM:
            return f"UQFF tag 0 stores 32-bit dimensions, got {max(shape)}"
        return layout.why_not(shape)

    def label(self, layout: Layout) -> str:
        """`q4k`, `q8_0`, `f32`."""
        return _ggml_type(layout).name.replace("_k", "k")

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Three entries, in this order."""
        return {
            "": BufferSpec("u8", (layout.nbytes(shape),)),
            ".dtype": BufferSpec("u32", ()),
            ".shape": BufferSpec("u32", (len(shape),)),
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The blocks as they are; nothing is copied."""
        import torch

        (buffer,) = qt.buffers.values()
        return {
            "": buffer.reshape(-1).view(torch.uint8),
            ".dtype": torch.tensor(_ggml_type(qt.layout).id, dtype=torch.uint32),
            ".shape": torch.tensor(qt.shape, dtype=torch.uint32),
        }

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """`ggml:*`, or `dense:*` for the float codes 0, 1 and 30."""
        _check(specs, "", "u8", rank=1)
        _check(specs, ".dtype", "u32", rank=0)
        _check(specs, ".shape", "u32", rank=1)
        if not {".dtype", ".shape"} <= set(small):
            raise HeaderError(f"a UQFF tag 0 weight of {specs['.shape'].shape[0]} dimensions")
        layout = _layout_of_code(int(small[".dtype"].item()))
        shape = tuple(int(n) for n in small[".shape"].tolist())
        reason = self.why_not(layout, shape)
        if reason is not None:
            raise HeaderError(f"`weight.shape` is {list(shape)}: {reason}")
        _check_length(layout, shape, math.prod(specs[""].shape))
        return layout, shape

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """A view of the blocks; floats that begin at an unaligned byte are copied."""
        raw = entries[""]
        _check_length(layout, shape, raw.numel())
        ((name, spec),) = layout.buffers(shape).items()
        if spec.dtype != "u8":
            dtype = torch_dtype(spec.dtype)
            aligned = raw if raw.data_ptr() % dtype.itemsize == 0 else raw.clone()
            raw = aligned.view(dtype)
        return QuantizedTensor(layout, shape, {name: raw.view(spec.shape)})


def _type_name(layout: Layout) -> str | None:
    if isinstance(layout, GgmlBlocks):
        return layout.type if layout.type in _BLOCK_TYPES else None
    if isinstance(layout, Dense):
        return layout.dtype if layout.dtype in _FLOAT_TYPES else None
    return None


def _ggml_type(layout: Layout) -> GgmlType:
    name = _type_name(layout)
    if name is None:
        raise HeaderError(f"UQFF tag 0 has no code for {layout}")
    return BY_NAME[name]


def _layout_of_code(code: int) -> Layout:
    ggml = BY_ID.get(code)
    if ggml is not None and ggml.name in _BLOCK_TYPES:
        return GgmlBlocks(ggml.name)
    if ggml is not None and ggml.name in _FLOAT_TYPES:
        return Dense(ggml.name)
    what = f"{code} ({ggml.name})" if ggml is not None else str(code)
    raise HeaderError(f"`weight.dtype` is {what}, which is no ggml type of UQFF tag 0")


def _check(specs: Mapping[str, BufferSpec], suffix: str, dtype: str, rank: int) -> None:
    if suffix not in specs:
        raise HeaderError(f"UQFF tag 0 needs the entry `weight{suffix}`")
    spec = specs[suffix]
    if spec.dtype != dtype or len(spec.shape) != rank:
        raise HeaderError(
            f"`weight{suffix}` must be {dtype} of rank {rank}, found {spec.dtype} {list(spec.shape)}"
        )


def _check_length(layout: Layout, shape: Shape, found: int) -> None:
    expected = layout.nbytes(shape)
    if found != expected:
        raise FormatError(f"{layout} {list(shape)} takes {expected} bytes, `weight` has {found}")


CODECS = [GgufCodec()]

"""The layout family `ggml`: rows of blocks, byte for byte as llama.cpp stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quantry import BufferSpec, Layout, Shape, ShapeError, UsageError, nearest
from quantry_gguf.types import BY_NAME, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAYOUTS", "GgmlBlocks"]

# llama.cpp rounds x to Q8_0 or Q8_1 blocks of 32 for these (`vec_dot_type`, ggml-cpu.c), else to Q8_K of 256
_ROUNDED_PER_32 = frozenset(
    {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1", "iq4_nl", "mxfp4", "nvfp4", "q1_0", "q2_0"}
)


@dataclass(frozen=True, slots=True)
class GgmlBlocks(Layout):
    """Quantized ggml blocks, e.g. `ggml:q4_k`.

    One buffer, `blocks`: uint8 [*lead, N, row_bytes]; a tensor of one dimension is one row, [row_bytes].
    Blocks run along a row and never cross it.

    >>> GgmlBlocks("q4_k").buffers((3, 512))
    {'blocks': BufferSpec(dtype='u8', shape=(3, 288))}
    """

    family: ClassVar[str] = "ggml"
    type: str

    def __post_init__(self) -> None:
        known = [t.name for t in BY_NAME.values() if not t.is_dense]
        if self.type not in known:
            raise UsageError(f"{self.type!r} is not a quantized ggml type", hint=nearest(self.type, known))

    @classmethod
    def variants(cls) -> Iterable[GgmlBlocks]:
        """Every type that weights are stored in; Q8_1 and Q8_K are for activations."""
        return [cls(t.name) for t in BY_NAME.values() if not t.is_dense and t.name not in ("q8_1", "q8_k")]

    @property
    def ggml(self) -> GgmlType:
        """The row of the type table."""
        return BY_NAME[self.type]

    @property
    def published_activations(self) -> tuple[str, ...]:
        """llama.cpp's int8 rounding of activations, per 32 or per 256."""
        return ("int8/32",) if self.type in _ROUNDED_PER_32 else ("int8/256",)

    def why_not(self, shape: Shape) -> str | None:
        """None when the columns are whole blocks."""
        if not shape:
            return "a ggml tensor has at least one dimension"
        if min(shape) < 0:
            return f"size {min(shape)} is negative"
        if shape[-1] % self.ggml.block:
            return f"{shape[-1]} columns are not a multiple of the block of {self.ggml.block}"
        return None

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`blocks` [*lead, N, row_bytes]."""
        return {"blocks": BufferSpec("u8", (*shape[:-1], self.ggml.row_bytes(shape[-1])))}

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The float32 values of ggml's `to_float`, bit for bit but for NaN payloads, on the same device."""
        from quantry_gguf.dequantize.rows import dequantize_blocks

        flat = buffers["blocks"].reshape(-1, self.ggml.block_bytes)
        return dequantize_blocks(self.type, flat).view(shape)

    def step(self, dim: int) -> int | None:
        """1 along out_features, a block along in_features."""
        return {-2: 1, -1: self.ggml.block}.get(dim)

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """The slice as a view."""
        blocks = buffers["blocks"]
        if dim == -2:
            return {"blocks": blocks.narrow(-2, start, length)}
        if dim == -1:
            return {"blocks": blocks.narrow(-1, self.ggml.row_bytes(start), self.ggml.row_bytes(length))}
        raise ShapeError(f"{self} cannot be sliced along dimension {dim}")


LAYOUTS = [GgmlBlocks]

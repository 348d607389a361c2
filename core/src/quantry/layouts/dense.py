"""Plain tensors as a layout, so that every weight of a checkpoint is a `QuantizedTensor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.grid import check_choice

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Dense"]


@dataclass(frozen=True, slots=True)
class Dense(Layout):
    """One buffer `weight` of `dtype` in the logical shape, of any rank: norms and scalars too.

    Float64 and integers are rounded to float32 by `dequantize`.

    >>> str(Dense("bf16")), Dense("bf16").nbytes((3, 5))
    ('dense:bf16', 30)
    """

    family: ClassVar[str] = "dense"
    DTYPES: ClassVar[tuple[str, ...]] = ("f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64", "u8")

    dtype: str

    def __post_init__(self) -> None:
        check_choice("Dense", "dtype", self.dtype, self.DTYPES)

    def why_not(self, shape: Shape) -> str | None:
        """None unless a size is negative."""
        return f"size {min(shape)} is negative" if shape and min(shape) < 0 else None

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`weight` [*shape]."""
        return {"weight": BufferSpec(self.dtype, shape)}

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The weight as float32, always a copy."""
        import torch

        return buffers["weight"].to(torch.float32, copy=True)

    def step(self, dim: int) -> int | None:
        """1: a plain tensor is cut anywhere."""
        return 1

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """The slice as a view."""
        return {"weight": buffers["weight"].narrow(dim, start, length)}

"""Plain float types as quantization targets: `--isq bf16` casts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantry.dtypes import torch_dtype
from quantry.errors import ShapeError, ValueDomainError
from quantry.layout import Layout, Shape
from quantry.layouts.dense import Dense
from quantry.quantizer import Quantizer
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "FloatCast"]


class FloatCast(Quantizer):
    """Rounds to a float type of any shape; an overflow is refused, as a NaN is."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]  # one class, three instances

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """Every shape fits."""
        return None if shape else "a scalar is no weight"

    def layout_for(self, shape: Shape, dtype: str) -> Layout:
        """`dense:` of the type."""
        return Dense(self.name)

    def quantize(self, weight: Tensor, layout: Layout, stats: Tensor | None = None) -> QuantizedTensor:
        """Round to nearest even. stats are ignored."""
        import torch

        shape = tuple(weight.shape)
        if reason := self.why_not(shape, ""):
            raise ShapeError(reason)
        cast = weight.detach().to(torch_dtype(self.name)).contiguous()
        finite = torch.isfinite(cast)
        if not bool(finite.all()):
            at = (~finite).nonzero()[0].tolist()
            raise ValueDomainError(f"{weight[tuple(at)].item()} at {at} has no {self.name}")
        return QuantizedTensor(layout, shape, {"weight": cast})


QUANTIZERS = [FloatCast("f32"), FloatCast("f16"), FloatCast("bf16")]

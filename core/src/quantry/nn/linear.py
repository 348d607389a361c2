"""A linear layer with a packed weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quantry import ops
from quantry.errors import ShapeError
from quantry.kernel import Op, bucket_index
from quantry.nn.packed import PackedModule
from quantry.tensor import QuantizedTensor

__all__ = ["QuantLinear"]


class QuantLinear(PackedModule):
    """`y = x Wᵀ + bias` for a packed W [out_features, in_features]; x [*, in_features] in any float dtype.

    Gradients reach x, never the codes. Raises ShapeError for a weight that is not a matrix.
    """

    ops: ClassVar[tuple[Op, ...]] = ("linear",)

    def __init__(self, qt: QuantizedTensor, bias: Tensor | None = None) -> None:
        if len(qt.shape) != 2:
            raise ShapeError(f"QuantLinear needs a matrix, got shape {list(qt.shape)}")
        if bias is not None and tuple(bias.shape) != qt.shape[:1]:
            raise ShapeError(f"bias has shape {list(bias.shape)}, the weight needs [{qt.shape[0]}]")
        super().__init__(qt, bias)

    @property
    def in_features(self) -> int:
        """K."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[*, in_features] → [*, out_features] in x's dtype."""
        return packed_linear(self, x, self._parameters["bias"])


def packed_linear(module: PackedModule, x: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by a module's packed weight: bound kernel when nobody watches, the op otherwise."""
    if x.shape[-1] != module._size[1]:
        raise ShapeError(f"x has shape {list(x.shape)}, the weight needs [*, {module._size[1]}]")
    if torch.compiler.is_compiling() or x.device.type == "meta":
        run = ops.linear_train if x.requires_grad and torch.is_grad_enabled() else ops.linear
        return run(x, module._w, module._text, module._size, bias, module._policy)  # type: ignore[no-any-return]
    if x.requires_grad and torch.is_grad_enabled():
        module._ready()
        return ops.linear_train(x, module._w, module._text, module._size, bias, module._policy)  # type: ignore[no-any-return]
    if ops.unwatched(x):
        plan = module._plan or module._ready()
        if x.dtype is module.compute_dtype and x.device == module._w[0].device:
            rows = x.numel() // module._size[1] if module._size[1] else 0
            kernel = plan["linear"][0 if rows <= 1 else bucket_index(rows)]
            return kernel.matmul(x, module._w, module.layout, module.shape, bias)
    return ops.linear(x, module._w, module._text, module._size, bias, module._policy)  # type: ignore[no-any-return]

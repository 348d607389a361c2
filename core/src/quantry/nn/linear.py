"""A linear layer with a packed weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

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
    columns = module._size[1]
    if x.shape[-1] != columns:
        raise ShapeError(f"x has shape {list(x.shape)}, the weight needs [*, {columns}]")
    train = x.requires_grad and torch.is_grad_enabled()
    if not is_compiling() and not x.is_meta:
        bound = module._bound
        # offloading hooks put other tensors in place between calls
        if bound is None or bound.first is not module._buffers[bound.name]:
            bound = module.bind()
        if not train and x.dtype is module.compute_dtype and x.device == bound.device and ops.unwatched(x):
            rows = x.numel() // columns if columns else 0
            return bound.calls[0 if rows <= 1 else bucket_index(rows)](x, bias)
    run = ops.linear_train if train else ops.linear
    return run(x, module._w, module._text, module._size, bias, module._policy)  # type: ignore[no-any-return]

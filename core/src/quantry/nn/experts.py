"""A stack of expert matrices with packed weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quantry import ops
from quantry.errors import ShapeError
from quantry.kernel import Op
from quantry.nn.packed import PackedModule
from quantry.tensor import QuantizedTensor

__all__ = ["QuantExperts"]


class QuantExperts(PackedModule):
    """x [T, 1|k, K] and expert ids [T, k] → [T, k, N], weight [E, N, K], bias [E, N]; weighting stays
    outside."""

    ops: ClassVar[tuple[Op, ...]] = ("experts",)

    def __init__(self, qt: QuantizedTensor, bias: Tensor | None = None) -> None:
        if len(qt.shape) != 3:
            raise ShapeError(f"QuantExperts needs a stack [experts, N, K], got shape {list(qt.shape)}")
        if bias is not None and tuple(bias.shape) != qt.shape[:2]:
            raise ShapeError(f"bias has shape {list(bias.shape)}, the weight needs {list(qt.shape[:2])}")
        super().__init__(qt, bias)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.shape[0]

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Rows of the chosen experts, in x's dtype. Raises KernelError for an id outside 0…E-1."""
        if x.ndim != 3 or ids.ndim != 2 or x.shape[0] != ids.shape[0] or x.shape[1] not in (1, ids.shape[1]):
            raise ShapeError(
                f"x must be [T, 1|k, K] and ids [T, k], got {list(x.shape)} and {list(ids.shape)}"
            )
        if x.shape[-1] != self.shape[-1]:
            raise ShapeError(f"x has shape {list(x.shape)}, the weight needs [*, {self.shape[-1]}]")
        if not torch.compiler.is_compiling() and x.device.type != "meta":
            self._ready()
        return ops.experts(x, ids, self._w, self._text, self._size, self.bias, self._policy)  # type: ignore[no-any-return]

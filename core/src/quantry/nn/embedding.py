"""An embedding table with packed rows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quantry import ops
from quantry.errors import ShapeError, UsageError
from quantry.kernel import Op
from quantry.nn.packed import PackedModule
from quantry.tensor import QuantizedTensor

__all__ = ["QuantEmbedding"]


class QuantEmbedding(PackedModule):
    """ids [*] → rows [*, embedding_dim] of `compute_dtype`, times `scale` in that dtype where one is given.

    scale: Gemma multiplies its embedding by sqrt(hidden), rounded to the compute dtype first.
    """

    ops: ClassVar[tuple[Op, ...]] = ("embedding",)

    def __init__(
        self, qt: QuantizedTensor, *, scale: float | None = None, padding_idx: int | None = None
    ) -> None:
        if len(qt.shape) != 2:
            raise ShapeError(f"QuantEmbedding needs a table [rows, width], got shape {list(qt.shape)}")
        super().__init__(qt)
        self.scale = scale
        self.padding_idx = padding_idx

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return self.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        """Raises UsageError for ids that are not integers, KernelError for an id outside the table."""
        if ids.dtype not in (torch.int64, torch.int32):
            raise UsageError(f"embedding ids must be int64 or int32, got {ids.dtype}")
        if not torch.compiler.is_compiling() and ids.device.type != "meta":
            self._ready()
        rows = ops.embedding(ids.long(), self._w, self._text, self._size, self.compute_dtype, self._policy)
        if self.scale is None:
            return rows  # type: ignore[no-any-return]
        return rows * torch.tensor(self.scale, dtype=self.compute_dtype, device=rows.device)  # type: ignore[no-any-return]

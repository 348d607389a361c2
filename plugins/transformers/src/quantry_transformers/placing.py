"""In which form each weight enters the model: packed as stored, quantized on the way, or a plain tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantry import FormatError, PackedModule, QuantizedTensor, dtype_name, explain, quantize_model, use

__all__ = ["Placing"]


@dataclass(frozen=True)
class Placing:
    """dtype: of activations and plain parameters. device: where weights go. isq: type of dense weights."""

    dtype: torch.dtype
    device: str = "cpu"
    isq: str | None = None

    def dense(self, name: str, qt: QuantizedTensor) -> Tensor:
        """A plain parameter (norm, bias) in the compute dtype. Raises FormatError for a packed one."""
        if qt.layout.family != "dense":
            raise FormatError(
                f"is packed as {qt.layout}, but the model computes with it as a plain tensor", tensor=name
            )
        return qt.buffers["weight"].to(self.device, self.dtype)

    def matrix(self, name: str, qt: QuantizedTensor, ops: tuple[str, ...]) -> QuantizedTensor | Tensor:
        """What a linear layer or embedding holds: packed weights as they are, dense ones packed where asked.

        A dense weight narrower than the compute dtype stays so where a kernel reads it; else it is cast.
        """
        if qt.layout.family == "dense" and self.isq is not None:
            qt = _quantized(name, qt, ops, self.isq)
        if qt.layout.family == "dense" and not self._stays_narrow(qt, ops):
            return self.dense(name, qt)
        return qt if self.device == "cpu" else qt.to(self.device)

    def _stays_narrow(self, qt: QuantizedTensor, ops: tuple[str, ...]) -> bool:
        if qt.buffers["weight"].dtype.itemsize >= self.dtype.itemsize:
            return False
        if "linear" not in ops:
            return True  # rows can be looked up in any dtype
        with use(reference="deny"):
            found = explain(qt, self.device, dtype=dtype_name(self.dtype))
        return found["tensors"][0]["chosen"] is not None


def _quantized(name: str, qt: QuantizedTensor, ops: tuple[str, ...], isq: str) -> QuantizedTensor:
    """The weight packed by the core's rules for its role and shape; as it was where they leave it dense."""
    leaf = name.split(".")[-2]
    rows, columns = qt.shape
    module: nn.Module = (
        nn.Embedding(rows, columns, device="meta")
        if "embedding" in ops
        else nn.Linear(columns, rows, bias=False, device="meta")
    )
    module.register_parameter("weight", nn.Parameter(qt.buffers["weight"], requires_grad=False))
    holder = nn.ModuleDict({leaf: module})
    quantize_model(holder, isq)
    packed = holder[leaf]
    return packed.qt if isinstance(packed, PackedModule) else qt

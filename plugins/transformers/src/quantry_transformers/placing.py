"""In which form each weight enters the model: packed as stored, quantized on the way, or a plain tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantry import Dense, FormatError, QuantizedTensor, Role, dtype_name, explain, pack_layer, use

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
        qt = self._packed(name, qt, "embedding" if "embedding" in ops else None)
        if qt.layout.family == "dense" and not self._stays_narrow(qt, ops):
            return self.dense(name, qt)
        return qt if self.device == "cpu" else qt.to(self.device)

    def experts(self, name: str, qt: QuantizedTensor) -> QuantizedTensor:
        """What a stack of experts holds: packed as stored or as asked, else plain in the compute dtype."""
        qt = self._packed(name, qt, "experts")
        if qt.layout.family == "dense":
            weight = qt.buffers["weight"].to(self.dtype)
            qt = QuantizedTensor(Dense(dtype_name(self.dtype)), qt.shape, {"weight": weight})
        return qt if self.device == "cpu" else qt.to(self.device)

    def _packed(self, name: str, qt: QuantizedTensor, role: Role | None) -> QuantizedTensor:
        """A dense weight as the type asked for makes it, unless the rules of ISQ leave it dense."""
        if qt.layout.family != "dense" or self.isq is None:
            return qt
        packed = pack_layer(name, qt.buffers["weight"], self.isq, role)
        return qt if isinstance(packed, str) else packed

    def _stays_narrow(self, qt: QuantizedTensor, ops: tuple[str, ...]) -> bool:
        if qt.buffers["weight"].dtype.itemsize >= self.dtype.itemsize:
            return False
        if "linear" not in ops:
            return True  # rows can be looked up in any dtype
        with use(reference="deny"):
            found = explain(qt, self.device, dtype=dtype_name(self.dtype))
        return found["tensors"][0]["chosen"] is not None

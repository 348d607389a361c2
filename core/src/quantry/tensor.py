"""A packed weight as a plain value: layout, logical shape, named buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantry.dtypes import dtype_name, torch_dtype
from quantry.errors import ShapeError, UsageError
from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["QuantizedTensor"]


class QuantizedTensor:
    """A weight in packed form. Immutable; its buffers are exactly `layout.buffers(shape)`, contiguous, on one
    device.

    layout: what the bytes mean. shape: logical, (…, out_features, in_features) for a matrix.
    buffers: read-only mapping of name to tensor.
    Raises ShapeError when the shape does not fit the layout or a buffer does not fit the shape.
    """

    __slots__ = ("__weakref__", "_prepared", "buffers", "layout", "shape")

    layout: Layout
    shape: Shape
    buffers: Mapping[str, Tensor]
    _prepared: Any  # what `quantry.matmul` resolved for this value; never part of its meaning

    def __init__(self, layout: Layout, shape: Shape, buffers: Mapping[str, Tensor]) -> None:
        shape = tuple(int(n) for n in shape)
        reason = layout.why_not(shape)
        if reason is not None:
            raise ShapeError(f"{layout} cannot hold shape {list(shape)}: {reason}")
        _check_buffers(layout, shape, buffers)
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "buffers", MappingProxyType({n: buffers[n] for n in layout.buffers(shape)}))
        object.__setattr__(self, "_prepared", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"QuantizedTensor is immutable; cannot set {name!r}")

    def __repr__(self) -> str:
        return f"QuantizedTensor({self.layout}, {list(self.shape)}, {self.nbytes} bytes on {self.device})"

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizedTensor, (self.layout, self.shape, dict(self.buffers))

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self.layout.nbytes(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included; 0 for an empty tensor."""
        return 8 * self.nbytes / self.numel if self.numel else 0.0

    bpw = bits_per_weight

    @property
    def device(self) -> torch.device:
        """Device of the buffers."""
        return next(iter(self.buffers.values())).device

    def to(self, device: str | torch.device) -> QuantizedTensor:
        """The same packed value on another device."""
        return QuantizedTensor(self.layout, self.shape, {n: b.to(device) for n, b in self.buffers.items()})

    def narrow(self, dim: int, start: int, length: int) -> QuantizedTensor:
        """The packed slice `weight.narrow(dim, start, length)`, without dequantizing.

        Raises ShapeError off the layout's grid, or where the layout cannot be sliced; UsageError out of
        range.
        """
        dim = dim - len(self.shape) if dim >= 0 else dim
        if not -len(self.shape) <= dim < 0:
            raise UsageError(f"dimension {dim} does not exist in shape {list(self.shape)}")
        size = self.shape[dim]
        if start < 0 or length < 0 or start + length > size:
            raise UsageError(f"slice {start}:{start + length} leaves dimension {dim} of size {size}")
        step = 1 if dim < -2 else self.layout.step(dim)
        if step is None:
            self.layout.narrow(self.buffers, self.shape, dim, start, length)  # says why it cannot
            raise ShapeError(f"{self.layout} cannot be sliced along dimension {dim}")
        if start % step or (length % step and start + length != size):
            raise ShapeError(
                f"{self.layout} can be sliced along dimension {dim} at multiples of {step} only,"
                f" not at {start}:{start + length}"
            )
        shape = list(self.shape)
        shape[dim] = length
        parts = (
            {n: b.narrow(len(self.shape) + dim, start, length) for n, b in self.buffers.items()}
            if dim < -2
            else self.layout.narrow(self.buffers, self.shape, dim, start, length)
        )
        return QuantizedTensor(self.layout, tuple(shape), {n: b.contiguous() for n, b in parts.items()})

    def convert(self, layout: Layout | str) -> QuantizedTensor:
        """The same numbers in another layout, by exact conversions only.

        Raises ShapeError when no exact conversion leads there.
        """
        from quantry.convert import convert

        return convert(self, layout)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [*shape], float32 or `dtype`, by the layout's reference definition. Always
        explicit."""
        dense = self.layout.dequantize(self.buffers, self.shape)
        return dense if dtype is None else dense.to(dtype)


def _check_buffers(layout: Layout, shape: Shape, buffers: Mapping[str, Tensor]) -> None:
    specs = layout.buffers(shape)
    if set(specs) != set(buffers):
        raise ShapeError(f"{layout} has the buffers {sorted(specs)}, got {sorted(buffers)}")
    devices = set()
    for name, spec in specs.items():
        t = buffers[name]
        if t.dtype != torch_dtype(spec.dtype) or tuple(t.shape) != spec.shape:
            raise ShapeError(
                f"{layout} {list(shape)}: buffer {name!r} must be {spec.dtype} {list(spec.shape)},"
                f" got {_dtype_text(t.dtype)} {list(t.shape)}"
            )
        if not t.is_contiguous():
            raise ShapeError(f"{layout} {list(shape)}: buffer {name!r} is not contiguous")
        devices.add(t.device)
    if len(devices) > 1:
        raise ShapeError(f"{layout} {list(shape)}: buffers lie on {len(devices)} devices")


def _dtype_text(dtype: object) -> str:
    try:
        return dtype_name(dtype)
    except KeyError:  # complex64 and others that no layout uses
        return str(dtype)

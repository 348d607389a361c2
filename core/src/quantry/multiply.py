"""`quantry.matmul`: multiply by a packed value without making a module of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantry import ops
from quantry.dtypes import dtype_name
from quantry.errors import ShapeError, UsageError
from quantry.kernel import NumericsMode, bucket_index
from quantry.policy import current_policy, use
from quantry.resolve import resolve
from quantry.tensor import QuantizedTensor

__all__ = ["matmul"]


def matmul(x: Tensor, qt: QuantizedTensor, numerics: NumericsMode | None = None) -> Tensor:
    """x [*, in_features] times the packed weight transposed → [*, out_features] in x's dtype.

    The weight stays packed. What was resolved for it, repacking included, is kept with `qt` for the next
    call, so a value multiplied this way may be held in two packings; `QuantLinear` holds one.
    Raises NoKernelError when nothing can run it, ShapeError when x does not fit.
    """
    if len(qt.shape) != 2:
        raise ShapeError(f"matmul takes one matrix, this weight has shape {list(qt.shape)}")
    if not torch.is_tensor(x) or not x.is_floating_point():
        raise UsageError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim == 0 or x.shape[-1] != qt.shape[-1]:
        raise ShapeError(f"x has shape {list(x.shape)}, the weight needs [*, {qt.shape[-1]}]")
    if x.device != qt.device:
        raise UsageError(f"x is on {x.device}, the weight on {qt.device}", hint="Move one: qt.to(x.device).")
    with use(numerics=numerics) as policy:
        stored, pin = _prepared(qt, x, str(policy))
    run = ops.linear_train if x.requires_grad and torch.is_grad_enabled() else ops.linear
    w = list(stored.buffers.values())
    y: Tensor = run(x, w, str(stored.layout), list(stored.shape), None, pin)
    return y


def _prepared(qt: QuantizedTensor, x: Tensor, pin: str) -> tuple[QuantizedTensor, str]:
    rows = x.numel() // max(x.shape[-1], 1)
    key: Any = (pin, x.dtype, bucket_index(rows))
    known: dict[Any, QuantizedTensor] | None = qt._prepared
    if known is None:
        known = {}
        object.__setattr__(qt, "_prepared", known)
    if key not in known:
        policy, name = current_policy(), dtype_name(x.dtype)
        decision = resolve(qt.layout, qt.shape, ("linear",), name, x.device, policy, rows=rows)
        same = next((t for t in (qt, *known.values()) if t.layout == decision.storage), None)
        known[key] = same if same is not None else qt.convert(decision.storage)
    return known[key], pin

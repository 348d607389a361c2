"""How far a kernel may be from float64 on the dequantized weight, from what it says about its rounding.

Per output of K products in blocks b, with dequantized weights w:
```
|Δ| <= Σ_b (max|x_b| / 254) Σ_{k in b} |w_k|          activations rounded to int8 (0 when exact)
     + 2^-23 (2 + K/32) Σ_k |x_k| max_{block of k}|w| float32 sums; s·q and s·z may be summed apart
     + one unit of the result's dtype, twice with a bias
```
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from quantry.errors import UsageError
from quantry.kernel import Numerics

__all__ = ["product_bound", "rounding"]

_SUM_UNIT = {"f16": 2.0**-10, "f32": 2.0**-23, "i32": 2.0**-23, "f64": 2.0**-52}
_SUM_BLOCK = 32
_INT = re.compile(r"int(\d+)(?:/(\d+))?\Z")
_RELATIVE = {"bf16": 2.0**-8, "f16": 2.0**-11, "fp8": 2.0**-4}  # half a unit in the last place, e4m3 for fp8


def product_bound(x: Tensor, w: Tensor, numerics: Numerics) -> Tensor:
    """[M, N] for x [M, K] and w [N, K], both float64, before the result is rounded to its own dtype."""
    k = x.shape[1]
    sums = _SUM_UNIT[numerics.accumulate] * (2 + k / _SUM_BLOCK)
    widest = _blocks(w.abs(), _SUM_BLOCK).amax(-1).repeat_interleave(_SUM_BLOCK, 1)[:, :k]
    return _activation_bound(x, w, numerics.activations) + sums * (x.abs() @ widest.T)


def rounding(y: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of `dtype` at |y|, and its smallest step at 0."""
    facts = torch.finfo(dtype)
    return y.abs() * facts.eps + facts.smallest_normal * facts.eps


def _activation_bound(x: Tensor, w: Tensor, kind: str) -> Tensor:
    if kind == "exact":
        return x.new_zeros((x.shape[0], w.shape[0]))
    if kind in _RELATIVE:
        return _RELATIVE[kind] * (x.abs() @ w.abs().T)
    match = _INT.match(kind)
    if match is None:
        raise UsageError(f"no tolerance is known for activations {kind!r}", hint="Override `tolerance`.")
    levels = 2 ** (int(match[1]) - 1) - 1
    block = int(match[2]) if match[2] else max(x.shape[1], 1)
    half_step: Tensor = _blocks(x.abs(), block).amax(-1) / (2 * levels)
    return half_step @ _blocks(w.abs(), block).sum(-1).T


def _blocks(t: Tensor, block: int) -> Tensor:
    """[R, K] → [R, ceil(K/block), block], the last filled with zeros."""
    k = t.shape[1]
    groups = math.ceil(k / block)
    return torch.nn.functional.pad(t, (0, groups * block - k)).view(t.shape[0], groups, block)

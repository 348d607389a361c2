"""How small the weighted error of a group can be, by trying in float64: what a search is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine_optimum", "weighted_error"]

_ENDS = 24  # places of either end of a range
_SHARE = 0.6  # of the range that an end may give up


def weighted_error(weight: Tensor, made: Tensor, importance: Tensor) -> Tensor:
    """Σ importance · (weight − made)² of each matrix, float64 [*]; importance [K] or as the weight."""
    return ((made.double() - weight.double()).square() * importance.double()).sum((-1, -2))


def affine_optimum(groups: Tensor, importance: Tensor, bits: int) -> Tensor:
    """The least weighted error of each group [G, n] by codes of `bits` bits on a line, float64 [G].

    Ranges inside that of the group are tried at 24 places of either end, each followed by two rounds of least
    squares; scale and offset have no rounding of their own.
    """
    x, w, most = groups.double().contiguous(), importance.double().contiguous(), 2**bits - 1
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    least = torch.full((len(x),), torch.inf, dtype=torch.float64)
    cuts = torch.linspace(0, _SHARE, _ENDS, dtype=torch.float64)
    for below, above in torch.cartesian_prod(cuts, cuts):
        if below + above >= 1:
            continue
        scale, offset = (high - low) * (1 - below - above) / most, low + (high - low) * below
        for _ in range(3):
            codes = ((x - offset) / scale).round().clamp(0, most)
            least = torch.minimum(least, ((codes * scale + offset - x).square() * w).sum(-1))
            scale, offset = _line(codes, x, w)
    return least


def _line(codes: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset [G, 1] of the weighted least-squares line through (code, x)."""
    total = w.sum(-1, keepdim=True)
    middle, mean = (w * codes).sum(-1, keepdim=True) / total, (w * x).sum(-1, keepdim=True) / total
    spread = (w * (codes - middle).square()).sum(-1, keepdim=True).clamp(min=1e-300)
    scale = (w * (codes - middle) * (x - mean)).sum(-1, keepdim=True) / spread
    scale = torch.where(scale == 0, 1e-30, scale)
    return scale, mean - scale * middle

"""Weights with groups that are hard to quantize, and the rule of mistral.rs restated in numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROUP = 64


def edge_rows(columns: int = 256, seed: int = 0) -> Tensor:
    """float32 [*, columns]: normal, tiny, one-sided, constant, zero, outlier, tied and subnormal groups."""
    g = torch.Generator().manual_seed(seed)

    def normal(rows: int, scale: float) -> Tensor:
        return torch.randn(rows, columns, generator=g) * scale

    outlier = normal(6, 0.01)
    outlier[:3, 7] = 30000
    outlier[3:, 70] = -512
    few_zeros = normal(4, 0.05)
    few_zeros[torch.rand(few_zeros.shape, generator=g) < 0.7] = 0
    constants = torch.tensor([0.0, -0.0, 3.7, -3.7e-9, 60000.0, -1.0, 1e-7, 2**-24])
    signed_zeros = torch.zeros(2, columns)
    signed_zeros[:, ::2] = -0.0
    return torch.cat([
        normal(24, 0.05), normal(2, 1e-7), normal(2, 1e4), normal(2, 1e-40), -normal(4, 1).abs(),
        normal(4, 1).abs(), 1000 + normal(4, 1), outlier, few_zeros, constants[:, None].expand(-1, columns),
        signed_zeros, (torch.randint(0, 17, (6, columns), generator=g) - 8) / 8,
        (torch.arange(columns) % 2).expand(2, -1) - 0.5,
    ])  # fmt: skip


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another type, 0 where that overflows."""
    cast = weight.to(dtype)
    return torch.where(cast.isfinite(), cast, torch.zeros((), dtype=dtype))


def minmax_reference(weight: Tensor, bits: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """Codes [N, K] (one each), scales and biases as mistral.rs' CPU code gives them; −0 counts as 0."""
    x = weight.float().numpy().reshape(len(weight), -1, GROUP)
    levels = np.float32(2**bits - 1)
    low = x.min(-1, keepdims=True) + np.float32(0)
    span = x.max(-1, keepdims=True) - low
    scale = np.where(np.abs(span) < np.float32(1e-12), np.float32(1), span / levels)
    t = (x - low) / scale
    codes = np.floor(t) + (t - np.floor(t) >= np.float32(0.5))  # half away from zero, t >= 0
    codes = np.clip(codes, 0, levels).astype(np.uint8).reshape(weight.shape)
    return codes, *(torch.from_numpy(v[..., 0]).to(weight.dtype) for v in (scale, low))


def worked_example() -> Tensor:
    """[256, 256] float32: the weight whose AFQ bytes mistral.rs 0.9.5 wrote."""
    r, c = torch.arange(256)[:, None], torch.arange(256)
    return ((31 * r + 17 * c) % 97 - 48) / 64

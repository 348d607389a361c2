"""Weights with blocks that are hard to quantize, and the two rules restated in numpy and torch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
# magnitudes from which a value takes the next code
_E2M1_STEPS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)


def edge_rows(columns: int = 256, seed: int = 0) -> Tensor:
    """float32 [*, columns]: blocks of many sizes, zeros, halfway cases, outliers, largest next to 6·2^k."""
    g = torch.Generator().manual_seed(seed)
    sizes = [10.0**p for p in (-44, -40, -38, -37, -20, -3, 0, 5, 30, 37)]
    normal = torch.cat([torch.randn(6, columns, generator=g) * size for size in sizes])
    steps = torch.tensor([*_E2M1_STEPS, *np.nextafter(_E2M1_STEPS, np.float32(0)), 6.0, -0.0])
    halfway = torch.cat([steps, -steps]).repeat(columns // len(steps) // 2)
    outlier = torch.randn(2, columns, generator=g)
    outlier[:, 5] = -3e37
    zeros = torch.zeros(2, columns)
    zeros[1] = -0.0
    return torch.cat([normal, halfway[None], outlier, zeros, -normal.abs()[40:44], _below_powers(columns)])


def _below_powers(columns: int) -> Tensor:
    """Blocks whose largest / 6 lies up to 127 places below a power of two, where log2 may round up."""
    rows = np.zeros((40, columns), np.float32)
    for i, block in np.ndindex(40, columns // BLOCK):
        power = np.float32(2.0) ** np.float32(-126 + 6 * i)
        places = (13 * i + 37 * block) % 128
        below = (power.view(np.uint32) - np.uint32(places)).view(np.float32)
        rows[i, block * BLOCK : (block + 1) * BLOCK] = below * np.float32(0.3)
        rows[i, block * BLOCK + 3] = below * np.float32(6 if block % 2 else -6)
    return torch.from_numpy(rows)


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another type, 0 where that overflows."""
    cast = weight.to(dtype)
    return torch.where(cast.isfinite(), cast, torch.zeros((), dtype=dtype))


def mxfp4_reference(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, K/2] and scales [N, K/32] as mistral.rs' CPU code gives them."""
    blocks = weight.float().numpy().reshape(len(weight), -1, BLOCK)
    largest = np.abs(blocks).max(-1)
    scales = np.vectorize(_mxfp4_scale, otypes=[np.uint8])(largest)
    values = blocks * np.exp2(127 - scales.astype(np.float32))[..., None]
    codes = np.searchsorted(_E2M1_STEPS, np.abs(values), side="right") | np.where(values < 0, 8, 0)
    codes = codes.astype(np.uint8).reshape(weight.shape)
    return torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4), torch.from_numpy(scales)


def _mxfp4_scale(largest: np.float32) -> int:
    if largest == 0:
        return 127
    sixth = float(np.float32(largest) / np.float32(6))
    if sixth == 0:
        return 0
    log2 = float(np.float32(math.log2(sixth)))  # f32's logarithm: double's, rounded
    return min(max(math.floor(log2) + 127, 0), 254)


def mxfp8_reference(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, K] and scales [N, K/32] by the OCP rule, rounded to e4m3 by torch."""
    blocks = weight.float().view(len(weight), -1, BLOCK)
    largest = blocks.abs().amax(-1)
    exponent = torch.frexp(largest)[1] - 1  # floor(log2)
    scales = torch.where(largest == 0, 127, (exponent - 8 + 127).clamp(0))
    values = (blocks.double() * torch.exp2((127 - scales).double())[..., None]).float().clamp(-448, 448)
    return values.to(torch.float8_e4m3fn).view(torch.uint8).view(weight.shape), scales.to(torch.uint8)

"""Ternary super-blocks of 256: TQ1_0 (five trits a byte) and TQ2_0 (ggml-common.h, ggml-quants.c)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantry_gguf.dequantize.fields import bit_fields, float16


def tq1_0(b: Tensor) -> Tensor:
    """qs[48]@0, qh[4]@48, d f16@52. Trit t of byte b is ((b·3^t mod 256)·3) >> 8."""
    trits = [_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)]
    return (torch.cat(trits, -1).to(torch.float32) - 1) * float16(b, 52)


def tq2_0(b: Tensor) -> Tensor:
    """qs[64]@0, d f16@64: bits 2l of byte 32h+m belong to element 128h+32l+m."""
    codes = bit_fields(b[:, :64].reshape(-1, 2, 32), 2).flatten(1)
    return (codes.to(torch.float32) - 1) * float16(b, 64)


def _trits(codes: Tensor, count: int) -> Tensor:
    """[n, m] → [n, count·m]: all first trits, then all second ones."""
    powers = torch.tensor([[3**t] for t in range(count)], dtype=torch.uint8, device=codes.device)
    shifted = codes.unsqueeze(-2) * powers  # uint8 wraps, as in C
    return (shifted.to(torch.int16) * 3 >> 8).flatten(1)

"""Super-blocks of 256 with integer sub-scales: Q2_K … Q6_K, Q8_K, IQ4_XS (ggml-common.h, ggml-quants.c).

Each function maps uint8 [n, block_bytes] to float32 [n, 256]. Products associate left to right, as in
ggml-quants.c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantry_gguf.dequantize.block32 import IQ4_VALUES, lookup16
from quantry_gguf.dequantize.fields import bit_fields, float16, integers


def q2_k(b: Tensor) -> Tensor:
    """scales[16]@0 (low nibble scale, high nibble min), qs[64]@16, d f16@80, dmin f16@82."""
    scales, codes = b[:, :16], _quarters(b[:, 16:80])
    dl = float16(b, 80) * (scales & 15).to(torch.float32)
    ml = float16(b, 82) * (scales >> 4).to(torch.float32)
    return _scaled(codes.to(torch.float32), dl, ml)


def q3_k(b: Tensor) -> Tensor:
    """hmask[32]@0, qs[64]@32, scales[12]@96, d f16@108; a clear mask bit means minus 4."""
    high = bit_fields(b[:, :32], 1).flatten(1)  # bit j of byte l belongs to element 32j+l
    codes = _quarters(b[:, 32:96]).to(torch.float32) - 4 * (1 - high.to(torch.float32))
    low4 = bit_fields(b[:, 96:104], 4).flatten(1)
    high2 = bit_fields(b[:, 104:108], 2).flatten(1)
    scales = (low4 | high2 << 4).to(torch.float32) - 32
    return _scaled(codes, float16(b, 108) * scales)


def q4_k(b: Tensor) -> Tensor:
    """d f16@0, dmin f16@2, scales[12]@4, qs[128]@16: 32 bytes hold two sub-blocks, low nibbles first."""
    return _scaled(_half_bytes(b[:, 16:]).to(torch.float32), *_scales_and_mins(b))


def q5_k(b: Tensor) -> Tensor:
    """d f16@0, dmin f16@2, scales[12]@4, qh[32]@16 (bit j: sub-block j), qs[128]@48."""
    high = bit_fields(b[:, 16:48], 1).flatten(1)
    return _scaled((_half_bytes(b[:, 48:]) | high << 4).to(torch.float32), *_scales_and_mins(b))


def q6_k(b: Tensor) -> Tensor:
    """ql[128]@0, qh[64]@128, scales i8[16]@192, d f16@208."""
    low = bit_fields(b[:, :128].reshape(-1, 2, 64), 4).flatten(1)
    codes = (low | _quarters(b[:, 128:192]) << 4).to(torch.float32) - 32
    return _scaled(codes, float16(b, 208) * b[:, 192:208].view(torch.int8).to(torch.float32))


def q8_k(b: Tensor) -> Tensor:
    """d f32@0, qs i8[256]@4, bsums i16[16]@260 (sums of 16 codes, not used here)."""
    return integers(b, 0, 4, torch.float32) * b[:, 4:260].view(torch.int8).to(torch.float32)


def iq4_xs(b: Tensor) -> Tensor:
    """d f16@0, scales_h u16@2, scales_l[4]@4, qs[128]@8: 16 bytes per sub-block, low nibbles first."""
    low4 = bit_fields(b[:, 4:8].unsqueeze(-1), 4).flatten(1)
    high2 = bit_fields(b[:, 2:4].unsqueeze(-1), 2).flatten(1)
    scales = (low4 | high2 << 4).to(torch.float32) - 32
    codes = bit_fields(b[:, 8:].reshape(-1, 8, 16), 4).flatten(1)
    return _scaled(lookup16(IQ4_VALUES, codes), float16(b, 0) * scales)


def _scaled(codes: Tensor, scales: Tensor, mins: Tensor | None = None) -> Tensor:
    """scales·codes - mins, one scale per sub-block: codes [n, 256], scales and mins [n, sub-blocks]."""
    y = scales.unsqueeze(-1) * codes.view(*scales.shape, -1)
    return (y if mins is None else y - mins.unsqueeze(-1)).view(codes.shape)


def _scales_and_mins(b: Tensor) -> tuple[Tensor, Tensor]:
    """d·scale and dmin·min of Q4_K and Q5_K, [n, 8] each.

    bytes 0-3: bits 0-5 scale 0-3, bits 6-7 the top of scale 4-7; bytes 4-7 the same of the mins;
    bytes 8-11: low nibble = low bits of scale 4-7, high nibble of min 4-7.
    """
    s, m, low = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat([s & 63, (low & 15) | (s >> 6) << 4], -1)
    mins = torch.cat([m & 63, (low >> 4) | (m >> 6) << 4], -1)
    return float16(b, 0) * scales.to(torch.float32), float16(b, 2) * mins.to(torch.float32)


def _quarters(qs: Tensor) -> Tensor:
    """Two-bit codes [n, 64] → [n, 256]: bits 2g of byte 32h+l belong to element 128h+32g+l."""
    return bit_fields(qs.reshape(-1, 2, 32), 2).flatten(1)


def _half_bytes(qs: Tensor) -> Tensor:
    """Nibbles [n, 128] → [n, 256]: byte 32p+l holds elements 64p+l (low) and 64p+32+l (high)."""
    return bit_fields(qs.reshape(-1, 4, 32), 4).flatten(1)

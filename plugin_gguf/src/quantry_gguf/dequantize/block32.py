"""Types without super-blocks: Q4_0 … Q8_1, IQ4_NL, MXFP4, NVFP4, Q1_0, Q2_0 (ggml-common.h, ggml-quants.c).

Each function maps uint8 [n, block_bytes] to float32 [n, block]. Products associate left to right, as in
ggml-quants.c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantry_gguf.dequantize.fields import bit_fields, float16

# ggml-common.h kvalues_iq4nl, kvalues_mxfp4 (E2M1 doubled)
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def q4_0(b: Tensor) -> Tensor:
    """d f16@0, qs[16]@2: byte j holds element j in the low and j+16 in the high nibble."""
    return (_nibbles(b, 2).to(torch.float32) - 8) * float16(b, 0)


def q4_1(b: Tensor) -> Tensor:
    """d f16@0, m f16@2, qs[16]@4."""
    return _nibbles(b, 4).to(torch.float32) * float16(b, 0) + float16(b, 2)


def q5_0(b: Tensor) -> Tensor:
    """d f16@0, qh u32@2 (bit e = fifth bit of element e), qs[16]@6."""
    return (_five_bits(b, 2).to(torch.float32) - 16) * float16(b, 0)


def q5_1(b: Tensor) -> Tensor:
    """d f16@0, m f16@2, qh u32@4, qs[16]@8."""
    return _five_bits(b, 4).to(torch.float32) * float16(b, 0) + float16(b, 2)


def q8_0(b: Tensor) -> Tensor:
    """d f16@0, qs i8[32]@2."""
    return b[:, 2:].view(torch.int8).to(torch.float32) * float16(b, 0)


def q8_1(b: Tensor) -> Tensor:
    """d f16@0, s f16@2 (d times the sum of qs, not used here), qs i8[32]@4."""
    return b[:, 4:].view(torch.int8).to(torch.float32) * float16(b, 0)


def iq4_nl(b: Tensor) -> Tensor:
    """d f16@0, qs[16]@2: nibbles are indices into IQ4_VALUES."""
    return float16(b, 0) * lookup16(IQ4_VALUES, _nibbles(b, 2))


def mxfp4(b: Tensor) -> Tensor:
    """e u8@0, qs[16]@1: doubled E2M1 times 2^(e-128)."""
    e = b[:, :1].to(torch.int32)
    # 2^-128 and 2^-127 are subnormal: their bits are 0x00200000 << e
    bits = torch.where(e < 2, torch.full_like(e, 0x00200000) << e.clamp(max=1), (e - 1) << 23)
    return lookup16(_E2M1_DOUBLED, _nibbles(b, 1)) * bits.view(torch.float32)


def nvfp4(b: Tensor) -> Tensor:
    """d UE4M3[4]@0, qs[32]@4: sub-block s of 16 uses bytes 8s…8s+7, low nibble element j, high j+8."""
    codes = bit_fields(b[:, 4:].reshape(-1, 4, 8), 4).reshape(-1, 4, 16)
    return (lookup16(_E2M1_DOUBLED, codes) * _half_ue4m3(b[:, :4]).unsqueeze(-1)).flatten(1)


def q1_0(b: Tensor) -> Tensor:
    """d f16@0, bits[16]@2, LSB first: d where set, -d where clear."""
    d = float16(b, 0)
    return torch.where(_in_order(b[:, 2:], 1) == 1, d, -d)


def q2_0(b: Tensor) -> Tensor:
    """d f16@0, qs[16]@2, two bits an element, LSB first: (q-1)·d."""
    return (_in_order(b[:, 2:], 2).to(torch.float32) - 1) * float16(b, 0)


def lookup16(values: tuple[int, ...], codes: Tensor) -> Tensor:
    """values[code] as float32, in the shape of `codes`."""
    table = torch.tensor(values, dtype=torch.float32, device=codes.device)
    return table[codes.to(torch.int32)]


def _nibbles(b: Tensor, start: int) -> Tensor:
    return bit_fields(b[:, start : start + 16], 4).reshape(-1, 32)


def _five_bits(b: Tensor, start: int) -> Tensor:
    return _nibbles(b, start + 4) | (_in_order(b[:, start : start + 4], 1) << 4)


def _in_order(codes: Tensor, width: int) -> Tensor:
    """Bit fields in byte order: [n, m] → [n, m·8/width]."""
    return bit_fields(codes.unsqueeze(-1), width).flatten(1)


def _half_ue4m3(x: Tensor) -> Tensor:
    """Half the value of an unsigned E4M3 byte; 0x7F is 0 (ggml-impl.h ggml_ue4m3_to_fp32)."""
    exponent = (x >> 3 & 15).to(torch.int32)
    mantissa = (x & 7).to(torch.int32)
    normal = ((exponent + 119) << 23 | mantissa << 20).view(torch.float32)
    value = torch.where(exponent == 0, mantissa.to(torch.float32) * 2.0**-10, normal)
    return torch.where(x == 0x7F, torch.zeros_like(value), value)

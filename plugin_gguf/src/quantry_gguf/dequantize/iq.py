"""Super-blocks of 256 whose codes index grids: IQ1_*, IQ2_*, IQ3_* (ggml-common.h, ggml-quants.c).

Each function maps uint8 [n, block_bytes] to float32 [n, 256]. A grid row gives 8 (IQ1, IQ2) or 4 (IQ3)
values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantry_gguf.dequantize.fields import bit_fields, float16, integers, row_lookup
from quantry_gguf.dequantize.grids import grid


def iq2_xxs(b: Tensor) -> Tensor:
    """d f16@0, then 8 times: idx u8[4], w u32 (four 7-bit sign codes, 4-bit scale)."""
    groups = b[:, 2:].reshape(-1, 8, 8)
    w = integers(b, 2, 66, torch.int32).view(-1, 8, 2)[..., 1]
    db = float16(b, 0) * (_top4(w) + 0.5) * 0.25
    return _signed(db, _rows("iq2_xxs", groups[..., :4]), _parity_signs(_seven_bits(w)))


def iq2_xs(b: Tensor) -> Tensor:
    """d f16@0, qs u16[32]@2 (9-bit index, 7-bit sign code), scales[8]@66 (nibble per 16)."""
    qs = integers(b, 2, 66, torch.int16).to(torch.int32) & 0xFFFF
    db = float16(b, 0) * (_nibble_scales(b[:, 66:74]) + 0.5) * 0.25
    return _signed(db, _rows("iq2_xs", qs & 511), _parity_signs(qs >> 9))


def iq2_s(b: Tensor) -> Tensor:
    """d f16@0, qs[32]@2, signs[32]@34, qh[8]@66 (two index bits per 8), scales[8]@74 (nibble per 16)."""
    index = b[:, 2:34].to(torch.int32) | _in_order(b[:, 66:74], 2).to(torch.int32) << 8
    db = float16(b, 0) * (_nibble_scales(b[:, 74:82]) + 0.5) * 0.25
    return _signed(db, _rows("iq2_s", index), b[:, 34:66])


def iq3_xxs(b: Tensor) -> Tensor:
    """d f16@0, qs[64]@2, w u32[8]@66 (four 7-bit sign codes, 4-bit scale)."""
    w = integers(b, 66, 98, torch.int32)
    db = float16(b, 0) * (_top4(w) + 0.5) * 0.5
    return _signed(db, _rows("iq3_xxs", b[:, 2:66]), _parity_signs(_seven_bits(w)))


def iq3_s(b: Tensor) -> Tensor:
    """d f16@0, qs[64]@2, qh[8]@66 (ninth index bit), signs[32]@74, scales[4]@106 (nibble per 32)."""
    index = b[:, 2:66].to(torch.int32) | _in_order(b[:, 66:74], 1).to(torch.int32) << 8
    db = float16(b, 0) * (_nibble_scales(b[:, 106:110]) * 2 + 1)
    return _signed(db, _rows("iq3_s", index), b[:, 74:106])


def iq1_s(b: Tensor) -> Tensor:
    """d f16@0, qs[32]@2, qh u16[8]@34: 3 index bits of four rows, 3-bit scale, bit 15 negates delta."""
    qh = integers(b, 34, 50, torch.int16).to(torch.int32)
    dl = float16(b, 0) * (2 * (qh >> 12 & 7) + 1).to(torch.float32)
    shifts = torch.tensor([0, 3, 6, 9], dtype=torch.int32, device=b.device)
    index = b[:, 2:34].to(torch.int32) | (qh.unsqueeze(-1) >> shifts & 7).flatten(1) << 8
    return _shifted(dl, _rows("iq1_s", index), _delta(qh & 0x8000))


def iq1_m(b: Tensor) -> Tensor:
    """qs[32]@0, qh[16]@32, sc u16[4]@48.

    A nibble of qh: 3 index bits of a row, bit 3 negates delta. A word of sc: four 3-bit scales, 4 bits of d.
    """
    sc = integers(b, 48, 56, torch.int16).to(torch.int32) & 0xFFFF
    nibble = torch.tensor([0, 4, 8, 12], dtype=torch.int32, device=b.device)
    bits = ((sc >> 12) << nibble).sum(-1, keepdim=True, dtype=torch.int32)
    d = bits.to(torch.int16).view(torch.float16).to(torch.float32)
    shifts = torch.tensor([0, 3, 6, 9], dtype=torch.int32, device=b.device)
    dl = d * (2 * (sc.unsqueeze(-1) >> shifts & 7) + 1).flatten(1).to(torch.float32)
    high = _in_order(b[:, 32:48], 4).to(torch.int32)
    index = b[:, :32].to(torch.int32) | (high & 7) << 8
    return _shifted(dl, _rows("iq1_s", index), _delta(high & 8))


def _rows(name: str, index: Tensor) -> Tensor:
    """Grid rows for `index` [n, ...], as float32 [n, 256]."""
    return row_lookup(grid(name).to(index.device), index).flatten(1)


def _signed(db: Tensor, values: Tensor, signs: Tensor) -> Tensor:
    """db·value, negated where the element's sign bit is set: db [n, groups], signs uint8 [n, 32]."""
    y = (db.unsqueeze(-1) * values.view(*db.shape, -1)).view(values.shape)
    return torch.where(_in_order(signs, 1) == 1, -y, y)


def _shifted(dl: Tensor, values: Tensor, delta: Tensor) -> Tensor:
    """dl·(value+delta): dl and delta [n, groups], values [n, 256]."""
    shifted = values.view(*delta.shape, -1) + delta.unsqueeze(-1)
    return (dl.unsqueeze(-1) * shifted.view(*dl.shape, -1)).view(values.shape)


def _delta(sign: Tensor) -> Tensor:
    return 0.125 - 0.25 * (sign != 0).to(torch.float32)


def _in_order(codes: Tensor, width: int) -> Tensor:
    return bit_fields(codes.unsqueeze(-1), width).flatten(1)


def _nibble_scales(scales: Tensor) -> Tensor:
    return _in_order(scales, 4).to(torch.float32)


def _top4(w: Tensor) -> Tensor:
    return (w >> 28 & 15).to(torch.float32)


def _seven_bits(w: Tensor) -> Tensor:
    """The four 7-bit fields of each word: int32 [n, 8] → [n, 32]."""
    shifts = torch.tensor([0, 7, 14, 21], dtype=torch.int32, device=w.device)
    return (w.unsqueeze(-1) >> shifts & 127).flatten(1)


def _parity_signs(code: Tensor) -> Tensor:
    """Seven sign bits and the eighth that makes their number even, as uint8."""
    folded = code ^ code >> 4
    folded = folded ^ folded >> 2
    return (code | ((folded ^ folded >> 1) & 1) << 7).to(torch.uint8)

"""The numbers behind codes: 16-entry codebooks and 256-entry small floats, with sources, and their lookup."""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable
from math import inf, ldexp, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CODEBOOKS", "TABLES", "dynamic_map", "look_up", "small_float", "values"]

# OCP Microscaling 1.0, §5.3.3: bit 3 is the sign, then 2 bits of exponent (bias 1) and 1 of mantissa
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

# bitsandbytes csrc/kernels.cu; the same numbers are in every file as `quant_map`
_FP4 = (
    0.0,
    0.0052083334885537624,
    0.6666666865348816,
    1.0,
    0.3333333432674408,
    0.5,
    0.1666666716337204,
    0.25,
)

CODEBOOKS: dict[str, tuple[float, ...]] = {
    # bitsandbytes functional.py, get_4bit_type("nf4"); the same numbers are in every file as `quant_map`
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    "fp4": _FP4 + tuple(-v if v else 0.0 for v in _FP4),  # code 8 is +0 in bitsandbytes
    # llama.cpp ggml-common.h, kvalues_iq4nl
    "iq4_nl": tuple(map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))),
    "e2m1": _E2M1 + tuple(-v for v in _E2M1),
}

_LOOKUP_CODES = 1 << 18  # codes widened to int32 at a time: 1 MiB, stays in L2


def small_float(exponent_bits: int, mantissa_bits: int, ieee: bool) -> tuple[float, ...]:
    """Values of all 256 codes of a sign/exponent/mantissa byte with bias 2^(exponent_bits-1)-1.

    ieee: the top exponent holds inf and NaN (E5M2); otherwise only the all-ones code is NaN (E4M3FN).
    Source: OCP 8-bit Floating Point Specification 1.0, tables 1 and 2.
    """
    bias = (1 << (exponent_bits - 1)) - 1
    top = (1 << exponent_bits) - 1
    ones = (1 << mantissa_bits) - 1
    positive = []
    for code in range(128):
        exponent, mantissa = code >> mantissa_bits, code & ones
        if exponent == top and (ieee or mantissa == ones):
            positive.append(inf if ieee and mantissa == 0 else nan)
        elif exponent == 0:
            positive.append(ldexp(mantissa, 1 - bias - mantissa_bits))
        else:
            positive.append(ldexp(mantissa + ones + 1, exponent - bias - mantissa_bits))
    return (*positive, *(-v for v in positive))


def dynamic_map() -> tuple[float, ...]:
    """bitsandbytes' signed dynamic 8-bit map, sorted, equal to `create_dynamic_map()` on CPUs with FMA.

    For i = 0…6 the means of neighbouring points of linspace(0.1, 1, 2^i + 1), times 10^(i-6), both signs,
    plus 0 and 1; every step rounded to float32, the points by one fused multiply-add as in torch's AVX2 code.
    torch without FMA rounds some entries differently: loaders compare a file's `nested_quant_map` with this.
    """
    found = [0.0, 1.0]
    for i in range(7):
        n = 1 << i
        low, step = _f32(0.1), _f32((1.0 - _f32(0.1)) / n)
        # torch counts the first half from the start and the second from the end
        points = [_f32(low + step * j if j < (n + 1) // 2 else 1.0 - step * (n - j)) for j in range(n + 1)]
        scale = _f32(10.0 ** (i - 6))
        means = [_f32(scale * _f32((a + b) / 2)) for a, b in itertools.pairwise(points)]
        found += [*means, *(-v for v in means)]
    return tuple(sorted(found))


TABLES: dict[str, Callable[[], tuple[float, ...]]] = {
    **{name: functools.partial(tuple, numbers) for name, numbers in CODEBOOKS.items()},
    "e4m3": functools.partial(small_float, 4, 3, False),
    "e5m2": functools.partial(small_float, 5, 2, True),
    # OCP Microscaling 1.0, §5.4.1: a bare exponent, no sign, no zero; code 0 is a float32 subnormal
    "e8m0": lambda: (*(ldexp(1.0, code - 127) for code in range(255)), nan),
    "dynamic": dynamic_map,
}
"""Table name → maker of its values, by code."""


def values(name: str, device: torch.device) -> Tensor:
    """The table `name` as float32 on `device`."""
    import torch

    return torch.tensor(_numbers(name), dtype=torch.float32, device=device)


def look_up(codes: Tensor, name: str) -> Tensor:
    """Float32 values [*] of uint8 codes [*] by table; every code must lie inside it.

    Works in chunks: temporary memory is 1 MiB however many codes there are.
    """
    import torch

    table = values(name, codes.device)
    flat = codes.reshape(-1)
    out = torch.empty(flat.shape, dtype=torch.float32, device=codes.device)
    for start in range(0, flat.numel(), _LOOKUP_CODES):
        chunk = flat[start : start + _LOOKUP_CODES]
        torch.index_select(table, 0, chunk.int(), out=out[start : start + chunk.numel()])
    return out.view(codes.shape)


@functools.cache
def _numbers(name: str) -> tuple[float, ...]:
    return TABLES[name]()


def _f32(x: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", x))
    return float(rounded)

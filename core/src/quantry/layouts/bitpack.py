"""Integer codes of 1 to 8 bits as bytes: one little-endian bit stream per row.

```
bit   0        b        2b       3b            code j of a row occupies bits j*b … j*b+b-1 of the row's bytes,
      | code 0 | code 1 | code 2 | …           bit i of a row is bit i%8 (lowest first) of byte i//8
```
Rows start on a byte; the unused high bits of a row's last byte are 0. MLX packs in this order (mlx:
mlx/backend/cpu/quantized.cpp, viewed as little-endian words), and so do GPTQ's words along K for every width.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from quantry.errors import ShapeError, ValueDomainError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["codes_per_unit", "pack", "packed_bytes", "unpack"]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of one row of `count` codes.

    >>> packed_bytes(11, 3)
    5
    """
    return -(-count * bits // 8)


def codes_per_unit(bits: int) -> int:
    """The fewest codes that fill whole bytes: rows can be cut at multiples of it.

    >>> [codes_per_unit(b) for b in range(1, 9)]
    [8, 4, 8, 2, 8, 4, 8, 1]
    """
    return 8 // gcd(8, bits)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes uint8 [*, n] into uint8 [*, packed_bytes(n, bits)].

    Temporary memory: one lane, n / codes_per_unit(bits) bytes a row.
    Raises ValueDomainError for a code of more than `bits` bits.

    >>> import torch
    >>> pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist()
    [33, 15]
    """
    limit = 1 << bits
    if codes.numel() and int(codes.max()) >= limit:
        raise ValueDomainError(f"code {int(codes.max())} does not fit in {bits} bits")
    count = codes.shape[-1]
    unit, unit_bytes = codes_per_unit(bits), bits // gcd(8, bits)
    packed = codes.new_zeros((*codes.shape[:-1], packed_bytes(count, bits)))
    for j in range(min(unit, count)):
        lane = codes[..., j::unit]
        byte, shift = divmod(j * bits, 8)
        packed[..., byte::unit_bytes][..., : lane.shape[-1]] |= lane << shift
        if shift + bits > 8:
            packed[..., byte + 1 :: unit_bytes][..., : lane.shape[-1]] |= lane >> (8 - shift)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of every row: uint8 [*, packed_bytes(count, bits)] → uint8 [*, count].

    Temporary memory: two lanes, 2 * count / codes_per_unit(bits) bytes a row.
    Raises ShapeError for a wrong row length.

    >>> import torch
    >>> unpack(torch.tensor([33, 15], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 15]
    """
    row_bytes = packed_bytes(count, bits)
    if packed.shape[-1] != row_bytes:
        raise ShapeError(
            f"{count} codes of {bits} bits fill {row_bytes} bytes, the row has {packed.shape[-1]}"
        )
    unit, unit_bytes, mask = codes_per_unit(bits), bits // gcd(8, bits), (1 << bits) - 1
    codes = packed.new_empty((*packed.shape[:-1], count))
    for j in range(min(unit, count)):
        size = -(-(count - j) // unit)
        byte, shift = divmod(j * bits, 8)
        lane = packed[..., byte::unit_bytes][..., :size] >> shift
        if shift + bits > 8:
            lane |= packed[..., byte + 1 :: unit_bytes][..., :size] << (8 - shift)
        codes[..., j::unit] = lane.bitwise_and_(mask)
    return codes

"""Reading numbers out of blocks. A block tensor `b` is uint8 [n, block_bytes]; results keep the leading n."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bit_fields", "float16", "integers", "row_lookup"]


def float16(b: Tensor, at: int) -> Tensor:
    """The half at byte `at` as float32 [n, 1]."""
    return integers(b, at, at + 2, torch.float16).to(torch.float32)


def integers(b: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Bytes start…stop as little-endian `dtype` [n, (stop-start)/itemsize]."""
    # a view needs an aligned, contiguous start; blocks may begin at any byte of a mapped file
    return b[:, start:stop].clone(memory_format=torch.contiguous_format).view(dtype)


def bit_fields(codes: Tensor, width: int) -> Tensor:
    """Fields of `width` bits, lowest first: uint8 [..., m] → uint8 [..., 8/width, m]."""
    mask = 2**width - 1
    # one scalar shift a field: five times the speed of one shift by a broadcast tensor
    return torch.stack([codes >> shift & mask for shift in range(0, 8, width)], -2)


def row_lookup(table: Tensor, index: Tensor) -> Tensor:
    """Rows of `table` [rows, width] for `index` [...]: float32 [..., width]."""
    rows = table.index_select(0, index.reshape(-1).to(torch.int64))
    return rows.to(torch.float32).view(*index.shape, table.shape[-1])

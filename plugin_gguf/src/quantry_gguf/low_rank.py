"""What adapters add to one row, in one native call for all layers that multiply it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import Array, addressof, c_int32, c_int64, c_void_p
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quantry_gguf import native

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bind_low_rank"]

_MOST_RANKS = 1024  # low_rank_ops.h, kMostRanks
_SERIAL_BYTES = 100 << 10  # threads.h, kSerialBytes


class LowRank(ctypes.Structure):
    """low_rank_ops.h, QuantryLowRank."""

    _fields_: ClassVar = [
        *((name, c_int32) for name in ("target", "count")),
        *((name, c_int64) for name in ("columns", "bytes")),
        *((name, c_void_p) for name in ("a", "ranks", "widths", "bs")),
    ]


class _Bound(NamedTuple):
    run: Callable[..., int]
    address: int  # of `described`
    results: type[Array[c_void_p]]
    serial: bool  # too little work for a second thread
    described: LowRank
    held: tuple[Any, ...]  # the addresses in `described` are good as long as these live


def bind_low_rank(a: Tensor, bs: Sequence[Tensor]) -> Callable[[Tensor, Sequence[Tensor]], None] | None:
    """`Kernel.bind_low_rank` for f32 on the CPU; None for other tensors and ranks beyond 1,024 in all."""
    import torch

    fits = all(t.dtype is torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in (a, *bs))
    if not fits or not 0 < len(a) <= _MOST_RANKS or native.why_not() is not None:
        return None
    count = len(bs)
    ranks, widths = (c_int64 * count)(*map(len, bs)), (c_int64 * count)(*(b.shape[1] for b in bs))
    listed = (c_void_p * count)(*(b.data_ptr() for b in bs))
    size = a.nbytes + sum(b.nbytes for b in bs)
    described = LowRank(
        native.target(), count, a.shape[1], size, a.data_ptr(),
        addressof(ranks), addressof(widths), addressof(listed),
    )  # fmt: skip
    run, held = native.library().quantry_gguf_low_rank, (a, *bs, ranks, widths, listed)
    bound = _Bound(run, addressof(described), c_void_p * count, size < _SERIAL_BYTES, described, held)
    return partial(_add, bound)


def _add(bound: _Bound, x: Tensor, ys: Sequence[Tensor]) -> None:
    run, described, results, serial, full, _ = bound
    to = results(*[y.data_ptr() for y in ys])
    status = run(described, x.data_ptr(), to, 1 if serial else native.threads())
    if status:
        native.fail(status, f"what {full.count} adapted layers of {full.columns} columns add")

"""The roof of this processor: the kernels' own instructions reading, and multiplying in registers."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from ctypes import addressof, c_double
from typing import TYPE_CHECKING

from quantry import Roof
from quantry_gguf import native

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ROOFS", "NativeRoof"]

BUFFER_BYTES = 1 << 30
PEAKS = ("int8", "f32", "bf16")
"""Element types by their number in probe_ops.h, QuantryPeak."""

_PAGE = 4096
_FEW_ROUNDS = 20_000
_PEAK_S, _TRIES = 0.0025, 4  # the best of short loops: another process takes the core for 4 ms at a time


class NativeRoof(Roof):
    """Reads run through one buffer of 1 GiB, so that each finds memory that was not read for long."""

    name, device, priority = "gguf.roof", "cpu", 10

    def __init__(self) -> None:
        self._next = 0

    def why_not(self, device: str) -> str | None:
        """Whether the native library is there."""
        return native.why_not()

    def read(self, nbytes: int, threads: int, device: str) -> float:
        """Timed in native code: the cost of a call from Python is no part of the roof."""
        buffer, taken = _buffer(), c_double()
        if self._next + nbytes > BUFFER_BYTES:
            self._next = 0
        status = native.library().quantry_gguf_probe_read(
            native.target(), buffer.data_ptr() + self._next, nbytes, threads, addressof(taken)
        )
        if status:
            native.fail(status, f"reading {nbytes} bytes")
        self._next += -(-nbytes // _PAGE) * _PAGE
        return taken.value

    def peaks(self, threads: int, device: str) -> Mapping[str, float]:
        """Of the instruction set in use; bf16 where the processor has its dot product."""
        found = {
            kind: max(_peak(kind, _rounds(kind, native.target()), threads) for _ in range(_TRIES))
            for kind in PEAKS
        }
        return {kind: gops for kind, gops in found.items() if gops}


@functools.cache
def _buffer() -> Tensor:
    import torch

    buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8)
    status = native.library().quantry_gguf_probe_fill(buffer.data_ptr(), BUFFER_BYTES, native.threads())
    if status:
        native.fail(status, f"filling {BUFFER_BYTES} bytes")
    return buffer


def _peak(kind: str, rounds: int, threads: int) -> float:
    gops = c_double()
    status = native.library().quantry_gguf_probe_peak(
        native.target(), PEAKS.index(kind), rounds, threads, addressof(gops)
    )
    if status:
        native.fail(status, f"the {kind} peak")
    return gops.value


@functools.cache
def _rounds(kind: str, target: int) -> int:
    """Turns of the loop that take about _PEAK_S here."""
    start = time.perf_counter()
    _peak(kind, _FEW_ROUNDS, 1)
    return max(int(_FEW_ROUNDS * _PEAK_S / (time.perf_counter() - start)), _FEW_ROUNDS)


ROOFS = [NativeRoof()]

"""The roof as torch reaches it: for devices that no plugin has probes for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quantry.roof import Roof

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["TorchRoof"]

BUFFER_BYTES = 512 << 20
_PAGE = 4096
_SIZE = 1024  # of the square products
_PEAK_S = 0.01


class TorchRoof(Roof):
    """Sums of int64 and products of square matrices: lower than native probes, so ratios look better."""

    name, device, priority = "torch.roof", "*", -10

    def __init__(self) -> None:
        self._next = 0

    def why_not(self, device: str) -> str | None:
        """Never declines."""
        return None

    def read(self, nbytes: int, threads: int, device: str) -> float:
        """The time of a sum over the bytes as int64."""
        buffer, words = _buffer(device), max(nbytes // 8, 1)
        if self._next + words > buffer.numel():
            self._next = 0
        part = buffer[self._next : self._next + words]
        self._next += -(-words * 8 // _PAGE) * _PAGE // 8
        return _seconds(part.sum, device)

    def peaks(self, threads: int, device: str) -> Mapping[str, float]:
        """Of torch.mm in float32 and bfloat16, and of torch._int_mm where the device has it."""
        found = {}
        for kind, (multiply, a, b) in _products(device).items():
            start, best = time.perf_counter(), float("inf")
            while time.perf_counter() - start < _PEAK_S:
                best = min(best, _seconds(functools.partial(multiply, a, b), device))
            found[kind] = 2 * _SIZE**3 / best / 1e9
        return found


@functools.cache
def _buffer(device: str) -> Tensor:
    import torch

    return torch.full((BUFFER_BYTES // 8,), 0x5555, dtype=torch.int64, device=device)


@functools.cache
def _products(device: str) -> dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]]:
    """(product, a, b) by element type, for those that run on the device."""
    import torch

    found: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {}
    kinds: tuple[tuple[str, torch.dtype, Any], ...] = (
        ("f32", torch.float32, torch.mm),
        ("bf16", torch.bfloat16, torch.mm),
        ("int8", torch.int8, torch._int_mm),
    )
    for name, dtype, multiply in kinds:
        a = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
        try:
            multiply(a, a)
        except (RuntimeError, NotImplementedError):
            continue  # the device does not multiply this type
        found[name] = (multiply, a, a)
    return found


def _seconds(call: Callable[[], object], device: str) -> float:
    import torch

    start = time.perf_counter()
    call()
    if device.partition(":")[0] != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start

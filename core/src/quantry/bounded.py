"""Many pieces of work on threads, with a bound of the memory they hold at once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from quantry.errors import UsageError
from quantry.process_memory import rss_bytes

__all__ = ["check_fits", "flight_bytes", "run_bounded"]

_T = TypeVar("_T")

_FLIGHT_BYTES = 200 << 20  # of tasks in work, whatever the number of workers
_KEPT_BYTES = 64 << 20  # of memory that the process holds beside them


def flight_bytes(max_memory: int | None) -> int:
    """Bytes that tasks may hold together where the process may use `max_memory`; None: what is fast."""
    if max_memory is None:
        return _FLIGHT_BYTES
    return max(max_memory - rss_bytes() - _KEPT_BYTES, 0)


def check_fits(cost: int, max_memory: int | None, tensor: str) -> None:
    """Raise UsageError naming the tensor of a task that costs so many bytes where they are not to be had."""
    free = flight_bytes(max_memory)
    if max_memory is not None and cost > free:
        raise UsageError(
            f"needs {cost / 1e6:.0f} MB to be packed, of {free / 1e6:.0f} MB that are left",
            tensor=tensor,
            hint=f"--max-memory {math.ceil((rss_bytes() + _KEPT_BYTES + cost) / 1e6)}MB is the least.",
        )


def run_bounded(
    tasks: Iterable[_T],
    work: Callable[[_T], None],
    cost: Callable[[_T], int],
    *,
    budget: int,
    jobs: int | None = None,
) -> None:
    """Have `work` do every task, on one torch thread each; those in work cost `budget` bytes together.

    cost: bytes that a task holds. A task dearer than the budget runs alone. jobs: threads, None for one per
    core. The first failure stops the others and is raised.
    """
    import torch

    jobs = jobs or os.cpu_count() or 1
    flying, pending = 0, dict[Future[None], int]()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, "quantry", torch.set_num_threads, (1,))  # tasks are the parallelism
    try:
        for task in tasks:
            need = cost(task)
            while pending and (len(pending) > jobs or flying + need > budget):
                flying -= _drain(pending)
            flying += need
            pending[pool.submit(work, task)] = need
        while pending:
            _drain(pending)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _drain(pending: dict[Future[None], int]) -> int:
    """Wait for a task to end; the bytes of those that have."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    freed = 0
    for future in done:
        freed += pending.pop(future)
        future.result()
    return freed

"""Many pieces of work on threads, with a bound of the memory they hold at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["run_bounded"]

_T = TypeVar("_T")


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

"""Progress of long work: a bar on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

__all__ = ["Tick", "progress"]


class Tick(Protocol):
    """Told how much is done."""

    def __call__(self, done: float, total: float, name: str, tensors: int = 0, /) -> None:
        """Done of a total, of what; and how many tensors are whole."""


@contextlib.contextmanager
def progress(what: str, sizes: bool = False) -> Iterator[Tick]:
    """A bar on stderr, shown on a terminal only. sizes: what is counted are bytes of tensors."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")]
    if sizes:
        columns += [TransferSpeedColumn(), TextColumn("{task.fields[rate]:.1f} tensors/s")]
    shown = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    start = time.perf_counter()
    with shown as bar:
        task = bar.add_task(what, total=None, rate=0.0)

        def tick(done: float, total: float, name: str, tensors: int = 0, /) -> None:
            rate = tensors / max(time.perf_counter() - start, 1e-9)
            bar.update(task, completed=done, total=total, description=f"{what} {name}", rate=rate)

        yield tick

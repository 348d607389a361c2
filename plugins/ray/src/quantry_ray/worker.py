"""What runs in a worker process: an output is opened once, then batch after batch is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantry_ray.cluster import import_ray

if TYPE_CHECKING:
    from quantry import OpenWork, TaskDone

__all__ = ["do_batch"]

_opened: tuple[str, OpenWork] | None = None


def do_batch(token: str, work: Sequence[Any], tasks: Sequence[int]) -> list[TaskDone]:
    """Do a batch. token: of the work, whose reference is the only element of `work`."""
    global _opened
    if _opened is None or _opened[0] != token:
        if _opened is not None:
            _opened[1].close()
            _opened = None
        _opened = token, import_ray().get(work[0]).open()
    return _opened[1].do(tasks)

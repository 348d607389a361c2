"""The executor `ray`. Imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantry import hookimpl

if TYPE_CHECKING:
    from quantry import Executor


@hookimpl
def quantry_executors() -> Iterable[Executor]:
    """The cluster."""
    from quantry_ray.executor import RayExecutor

    return [RayExecutor()]

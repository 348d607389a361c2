"""`quantry.measure`: which kernels are timed for the weights of a model, within a budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from quantry import ops
from quantry.contest import Entrant, Stage
from quantry.convert import reachable
from quantry.devices import DeviceInfo
from quantry.kernel import Op
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import Policy, current_policy
from quantry.resolve import candidates_of, wanted_keys
from quantry.timings import Timings, timings_of

__all__ = ["MODEL_SECONDS", "Measured", "WeightUse", "measure"]

MODEL_SECONDS = 2.0
_COLD_ROWS = 16  # with more rows of x a weight is used often enough for caches to be part of the deal


@dataclasses.dataclass(frozen=True, slots=True)
class WeightUse:
    """One way a weight will be used; equal uses share their times. policy: the current one by default."""

    layout: Layout
    shape: Shape
    ops: tuple[Op, ...] = ("linear",)
    dtype: str = "f32"
    device: str = "cpu"
    policy: Policy = dataclasses.field(default_factory=current_policy)


class Measured(NamedTuple):
    """What `measure` did. A problem is one op and row count of a weight that several kernels can run."""

    timed: int
    left: int  # problems that the time did not suffice for; another call goes on with them
    seconds: float


def measure(
    uses: Iterable[WeightUse],
    *,
    seconds: float = MODEL_SECONDS,
    rows: int | None = None,
    alone: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Time what is not known yet about these uses, keep it in memory and on disk.

    Only problems that more than one kernel can run are timed, decoding (few rows) of every weight first.
    seconds: budget of the whole call; one problem takes about 50 ms. rows: only this row count. alone: time a
    kernel that has no rival too, to compare layouts. A kernel that
    raises is disqualified for the problem, with its error as the reason. Does nothing under a compiler,
    tracer, profiler or graph capture.
    """
    start, timed, left = clock(), 0, 0
    distinct = list(dict.fromkeys(uses))
    for cold in (True, False):
        for use in distinct:
            info = registry().device(use.device)
            if _watched(info):
                continue
            timings, stage = timings_of(info), Stage(use.device, use.policy, cold, clock)
            for entrants in _contests(use, info, cold, rows, timings, 1 if alone else 2):
                if clock() - start >= seconds:
                    left += 1
                    continue
                stage.run(entrants, timings)
                timed += 1
            timings.save()
    return Measured(timed, left, clock() - start)


def _watched(info: DeviceInfo) -> bool:
    if is_compiling() or not ops.unwatched(torch.empty(0)):
        return True
    return info.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _contests(
    use: WeightUse, info: DeviceInfo, cold: bool, rows: int | None, timings: Timings, least: int
) -> list[list[Entrant]]:
    """The kernels that compete for each op and row bucket, over all storages, where a time is missing."""
    found = []
    for key in wanted_keys(use.ops, rows):
        entrants = []
        for storage in reachable(use.layout, use.shape):
            candidates = candidates_of(
                use.layout, storage, use.shape, key, use.dtype, info, use.policy, timings
            )
            entrants += [Entrant(kernel, problem) for kernel, problem, reason in candidates if reason is None]
        known = all(timings.time_us(*e) is not None for e in entrants)
        if len(entrants) >= least and not known and (entrants[0].problem.rows <= _COLD_ROWS) == cold:
            found.append(entrants)
    return found

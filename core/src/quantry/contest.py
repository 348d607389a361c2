"""Kernels called in turn on made-up weights until their times can be compared.

What is timed stands for what will run. Codes do not matter to a kernel's speed, so buffers are made up in
each storage (`Layout.sample`). A weight larger than `_WEIGHT_BYTES` is represented by its first rows, and
more than `_TIMED_ROWS` rows of x by so many; at these sizes time is proportional to the work and is scaled.
With few rows of x a weight is read once a call, and a model reads all its others in between: so copies of the
sample, together larger than most last-level caches, take turns.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantry.dtypes import torch_dtype
from quantry.kernel import Kernel, Problem
from quantry.layout import Layout, Shape
from quantry.policy import Policy, applied
from quantry.timings import Timings

__all__ = ["Entrant", "Stage"]

_SECONDS = 0.05  # of timed calls in one contest
_ROUNDS = range(2, 31)  # least and most times that each is called
_OUT = 4.0  # times slower than the best: not called again

_TIMED_ROWS = 256
_WEIGHT_BYTES = 16 << 20
_COLD_BYTES = 64 << 20
_MOST_COPIES = 96
_FLOPS_PER_THREAD = 1e9
_FLOPS = 1e11  # for devices that are not a CPU
_STEP = 256  # rows of a part of a weight are a multiple of it

# a try on little work tells which kernels would spend the budget of all in one call: it is their time
_TRY_ROWS = 4
_TRIES = range(2, 10)  # so many more where the time seems long, since another process may have had the core
_TRY_OUT = 8.0  # times slower than the best

_QUEUED = 8  # calls that share the cost of one synchronization, on devices that work ahead
_LEAST_US = 1e-3  # a clock may stand still; a time is positive

_Call = Callable[[], object]
_Prepared = Callable[[int], _Call]  # the call on the copy of that number
_Outcome = float | Exception  # seconds, or why it cannot be timed


class Entrant(NamedTuple):
    """A kernel and the problem, in one storage, that it could run."""

    kernel: Kernel
    problem: Problem


class _Part(NamedTuple):
    """What represents a problem."""

    shape: Shape
    rows: int

    def work(self, op: str) -> float:
        """What time is proportional to; a lookup takes as long in a table of any size."""
        return float(self.rows if op == "embedding" else max(self.shape[-2], 1) * self.rows)


class Stage:
    """Where the contests of one weight are held; samples are made once.

    cold: whether the copies of a sample take turns. Policy: under which composite kernels choose their parts.
    """

    def __init__(self, device: str, policy: Policy, cold: bool, clock: Callable[[], float]) -> None:
        self._device, self._policy, self._cold, self._clock = torch.device(device), policy, cold, clock
        self._samples: dict[tuple[Layout, Shape], list[list[Tensor]]] = {}
        self._held: dict[tuple[Any, ...], list[_Outcome]] = {}

    def run(self, entrants: Sequence[Entrant], timings: Timings) -> None:
        """Hold one contest and keep its outcome."""
        problem = entrants[0].problem
        part = self._part(entrants)
        key = (part, *((e.problem.op, e.kernel.name, str(e.problem.layout)) for e in entrants))
        if key not in self._held:  # the largest bucket is timed on the rows of the one before
            with torch.inference_mode(), applied(self._policy):
                self._held[key] = self._outcomes(entrants, part)
        scale = 1e6 * _Part(problem.shape, problem.rows).work(problem.op) / part.work(problem.op)
        for entrant, outcome in zip(entrants, self._held[key], strict=True):
            if isinstance(outcome, Exception):
                timings.disqualify(*entrant, outcome)
            else:
                timings.record(*entrant, max(outcome * scale, _LEAST_US))

    def _part(self, entrants: Sequence[Entrant]) -> _Part:
        """As much of the problem as is timed."""
        problem = entrants[0].problem
        rows = min(problem.rows, _TIMED_ROWS)
        *_, n, k = problem.shape
        row_bytes = max(e.problem.layout.nbytes(problem.shape) for e in entrants) / max(n, 1)
        flops = _FLOPS_PER_THREAD * torch.get_num_threads() if self._device.type == "cpu" else _FLOPS
        fits = min(_WEIGHT_BYTES / max(row_bytes, 1), flops / max(2 * rows * k, 1))
        return _cut(_Part(problem.shape, rows), max(math.ceil(fits / _STEP), 1) * _STEP, entrants)

    def _outcomes(self, entrants: Sequence[Entrant], part: _Part) -> list[_Outcome]:
        op = entrants[0].problem.op
        little = _cut(part._replace(rows=min(part.rows, _TRY_ROWS)), _STEP, entrants)
        scale = part.work(op) / little.work(op)
        outcomes = [_estimate(self._prepared(e, little, cold=False), self._timed, scale) for e in entrants]
        fastest = min((t for t in outcomes if isinstance(t, float)), default=0.0)
        running = [
            i
            for i, t in enumerate(outcomes)
            if isinstance(t, float) and (t <= _SECONDS or t <= _TRY_OUT * fastest)
        ]
        raced = _race([self._prepared(entrants[i], part, self._cold) for i in running], self._timed)
        for i, outcome in zip(running, raced, strict=True):
            outcomes[i] = outcome
        return outcomes

    def _prepared(self, entrant: Entrant, part: _Part, cold: bool) -> _Prepared:
        """The kernel's calls, each bound at its first use: binding is no part of a call."""
        kernel, problem = entrant
        copies = self._copies(problem.layout, part.shape, cold)
        dtype = torch_dtype(problem.dtype)
        generator = torch.Generator().manual_seed(0)
        *lead, n, k = part.shape
        x = torch.randn(part.rows, n if problem.op == "linear_dx" else k, generator=generator)
        ids = torch.randint(lead[0] if lead else max(n, 1), (part.rows,), generator=generator)
        x, ids = x.to(self._device, dtype), ids.to(self._device)
        args = (problem.layout, part.shape)

        @functools.cache
        def bound(i: int) -> _Call:
            w = copies[i]
            if problem.op == "linear":
                return functools.partial(kernel.bind(w, *args), x, None)
            if problem.op == "linear_dx":
                return functools.partial(kernel.linear_dx, x, w, *args)
            if problem.op == "embedding":
                return functools.partial(kernel.embedding, ids, w, *args, dtype)
            return functools.partial(kernel.experts, x.unsqueeze(1), ids.unsqueeze(1), w, *args, None)

        return lambda turn: bound(turn % len(copies))

    def _copies(self, layout: Layout, shape: Shape, cold: bool) -> list[list[Tensor]]:
        copies = self._samples.get((layout, shape))
        if copies is None:
            copies = [[b.to(self._device) for b in layout.sample(shape).values()]]
            self._samples[layout, shape] = copies
        if cold and len(copies) == 1:
            count = min(max(math.ceil(_COLD_BYTES / max(layout.nbytes(shape), 1)), 2), _MOST_COPIES)
            copies += [[b.clone() for b in copies[0]] for _ in range(count - 1)]
        return copies

    def _timed(self, call: _Call) -> float:
        """Seconds of one call."""
        if self._device.type == "cpu":
            start = self._clock()
            call()
            return self._clock() - start
        synchronize = getattr(torch, self._device.type).synchronize
        synchronize()
        start = self._clock()
        for _ in range(_QUEUED):
            call()
        synchronize()
        return (self._clock() - start) / _QUEUED


def _cut(part: _Part, rows: int, entrants: Sequence[Entrant]) -> _Part:
    """At most so many rows of the weight, where all layouts and kernels take as few."""
    *lead, n, k = part.shape
    shape = (*lead, min(n, rows), k)
    for kernel, problem in entrants:
        if problem.layout.why_not(shape) or kernel.why_not(dataclasses.replace(problem, shape=shape)):
            return part
    return part._replace(shape=shape)


def _estimate(prepared: _Prepared, timed: Callable[[_Call], float], scale: float) -> _Outcome:
    """`scale` times the least seconds of a few calls on the first copy."""
    least, spent = math.inf, 0.0
    for turn in range(1 + _TRIES.stop):
        took = _attempt(prepared, 0, timed)
        if isinstance(took, Exception):
            return took
        least, spent = min(least, took), spent + took
        if turn >= _TRIES.start and (least * scale <= _SECONDS or spent >= _SECONDS):
            break
    return least * scale


def _race(calls: Sequence[_Prepared], timed: Callable[[_Call], float]) -> list[_Outcome]:
    """The least seconds of each, called in turn; the error of those that raise."""
    outcome = [_attempt(call, 0, timed) for call in calls]  # pages are touched for the first time
    # a first call that uses up the time of all is the measurement
    best = {i: math.inf for i, t in enumerate(outcome) if isinstance(t, float) and t < _SECONDS}
    running, spent = list(best), 0.0
    for turn in range(1, _ROUNDS.stop):
        for i in list(running):
            took = _attempt(calls[i], turn, timed)
            if isinstance(took, Exception):
                outcome[i] = took
                running.remove(i)
                del best[i]
            else:
                spent += took
                best[i] = min(best[i], took)
        fastest = min(best.values(), default=0.0)
        running = [i for i in running if best[i] <= _OUT * fastest]
        if not running or (turn >= _ROUNDS.start and spent >= _SECONDS):
            break
    for i, took in best.items():
        outcome[i] = took
    return outcome


def _attempt(prepared: _Prepared, turn: int, timed: Callable[[_Call], float]) -> _Outcome:
    try:
        return timed(prepared(turn))
    except Exception as e:
        return e

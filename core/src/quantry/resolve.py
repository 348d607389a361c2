"""Which kernel runs a weight, in which storage, and why each other candidate does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantry.convert import reachable
from quantry.errors import NoKernelError
from quantry.hints import what_to_install
from quantry.kernel import BUCKETS, Kernel, Numerics, Op, Problem, bucket_index
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import Policy

__all__ = ["Candidate", "Decision", "TimeOf", "resolve"]

MAX_GROWTH = 1.05
SLACK_BYTES = 256 << 10  # padding N to a panel of 16 rows may grow a small weight by more than MAX_GROWTH
# one row decides decoding; the rest is spread evenly (design guess until measured on real models)
_WEIGHTS = (0.6, *[0.4 / (len(BUCKETS) - 1)] * (len(BUCKETS) - 1))

TimeOf = Callable[[Kernel, Problem], float | None]
"""Measured µs of a kernel on a problem, None when it was never measured."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel on one storage for one op and row bucket: chosen, able, or the sentence that says why
    not."""

    kernel: str
    op: str
    storage: str
    rows: int
    ok: bool
    chosen: bool
    reason: str | None
    priority: int
    time_us: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """How one weight is stored and run."""

    layout: Layout
    shape: Shape
    storage: Layout
    kernels: Mapping[tuple[str, int], Kernel]
    candidates: tuple[Candidate, ...]

    def plan(self, op: Op) -> tuple[Kernel | None, ...]:
        """The kernel of each row bucket of `op`; None only in a partial decision."""
        return tuple(self.kernels.get((op, i)) for i in range(len(_buckets_of(op))))


def resolve(
    layout: Layout,
    shape: Shape,
    ops: Sequence[Op],
    dtype: str,
    device: str | object,
    policy: Policy,
    *,
    keep_storage: bool = False,
    rows: int | None = None,
    partial: bool = False,
    tensor: str | None = None,
    time_of: TimeOf | None = None,
) -> Decision:
    """Choose one storage for the weight and one kernel per op and row bucket.

    rows: only the bucket of this row count, where one call is all there is. partial: where no storage serves
    every bucket, take the one that serves most; the buckets it lacks have no kernel in the decision.
    Storages are the weight's own layout and, unless `keep_storage`, what exact conversions reach. Order is
    total: measured time, else priority, then kernels of the layout's own plugin, then the name.
    Raises NoKernelError, carrying every candidate, when nothing serves what was asked.
    """
    info = registry().device(device)
    storages = [layout] if keep_storage else list(reachable(layout, shape))
    wanted = [
        (op, i)
        for op in ops
        for i in range(len(_buckets_of(op)))
        if rows is None or op == "embedding" or i == bucket_index(rows)
    ]
    candidates: list[Candidate] = []
    trials: list[tuple[tuple[float, float, bool, str], Layout, dict[tuple[str, int], Kernel]]] = []
    for storage in storages:
        grown = _growth(layout, storage, shape, policy)
        chosen: dict[tuple[str, int], Kernel] = {}
        score = 0.0
        for op, i in wanted:
            problem = Problem(op, storage, shape, _buckets_of(op)[i], dtype, info, policy.numerics)
            found, best = _rate(problem, policy, grown, time_of)
            candidates += found
            if best is not None:
                score += _WEIGHTS[i] * best[0]
                chosen[op, i] = best[1]
        if len(chosen) == len(wanted) or (partial and chosen):
            lacking = sum(_WEIGHTS[i] for key in wanted if key not in chosen for i in key[1:])
            trials.append(((lacking, score, storage != layout, str(storage)), storage, chosen))
    if not trials:
        raise _no_kernel(layout, shape, ops, dtype, str(info), policy, candidates, tensor)
    _, storage, kernels = min(trials, key=lambda trial: trial[0])
    return Decision(layout, shape, storage, kernels, tuple(_marked(c, storage, kernels) for c in candidates))


def _rate(
    problem: Problem, policy: Policy, grown: str | None, time_of: TimeOf | None
) -> tuple[list[Candidate], tuple[float, Kernel] | None]:
    """Every kernel of the problem's op and family, and (cost, kernel) of the best that can run it."""
    candidates: list[Candidate] = []
    able: list[tuple[tuple[bool, float, bool, str], Kernel]] = []
    for kernel in registry().kernels:
        if kernel.op != problem.op or kernel.family not in (problem.layout.family, "*"):
            continue
        reason = grown or _why_not(kernel, problem, policy)
        time_us = time_of(kernel, problem) if time_of and reason is None else None
        candidates.append(
            Candidate(
                kernel=kernel.name,
                op=problem.op,
                storage=str(problem.layout),
                rows=problem.rows,
                ok=reason is None,
                chosen=False,
                reason=reason,
                priority=kernel.priority,
                time_us=time_us,
            )
        )
        if reason is None:
            able.append((_rank(kernel, problem.layout, time_us), kernel))
    if not able:
        return candidates, None
    rank, best = min(able, key=lambda pair: pair[0])
    return candidates, (rank[1], best)


def _buckets_of(op: str) -> tuple[int, ...]:
    return BUCKETS[:1] if op == "embedding" else BUCKETS


def _growth(layout: Layout, storage: Layout, shape: Shape, policy: Policy) -> str | None:
    own, packed = layout.nbytes(shape), storage.nbytes(shape)
    if policy.memory == "fast" or packed <= max(own * MAX_GROWTH, own + SLACK_BYTES):
        return None
    return f"stored as {storage} the weight grows by {packed / own - 1:.0%} (memory='fast' permits it)"


def _why_not(kernel: Kernel, problem: Problem, policy: Policy) -> str | None:
    if kernel.device not in (problem.device.type, "*"):
        return f"runs on {kernel.device}, not on {problem.device.type}"
    if kernel.reference and not policy.reference:
        return 'disabled (set reference="allow" to permit the slow tile-wise path)'
    if kernel.name in os.environ.get("QUANTRY_DISABLE", "").split(","):
        return "disabled by QUANTRY_DISABLE"
    if policy.only and kernel.name not in policy.only and _restricts(policy, problem.op):
        return f"not in the override {', '.join(policy.only)}"
    return _numerics_refusal(kernel.numerics_for(problem.layout), problem) or kernel.why_not(problem)


def _restricts(policy: Policy, op: str) -> bool:
    return any(k.op == op for k in registry().kernels if k.name in policy.only)


def _numerics_refusal(numerics: Numerics, problem: Problem) -> str | None:
    if problem.numerics == "fast":
        return None
    if numerics.accumulate == "f16":
        return f"accumulates in f16, numerics {problem.numerics!r} asks for f32"
    if numerics.activations == "exact":
        return None
    if problem.numerics == "exact":
        return f"rounds activations to {numerics.activations}, numerics 'exact' keeps them"
    if numerics.activations not in problem.layout.published_activations:
        return f"rounds activations to {numerics.activations}, which {problem.layout} does not publish"
    return None


def _rank(kernel: Kernel, storage: Layout, time_us: float | None) -> tuple[bool, float, bool, str]:
    family, mine = registry().owner("layouts", storage.family), registry().owner("kernels", kernel.name)
    foreign = family is None or mine is None or family.name != mine.name
    return (time_us is None, time_us if time_us is not None else -kernel.priority, foreign, kernel.name)


def _marked(c: Candidate, storage: Layout, kernels: Mapping[tuple[str, int], Kernel]) -> Candidate:
    if not c.ok:
        return c
    winner = kernels.get((c.op, _buckets_of(c.op).index(c.rows)))
    if winner is None or c.storage != str(storage):
        reason = f"the weight is stored as {storage}"
    elif winner.name == c.kernel:
        reason = None
    elif c.time_us is not None:
        reason = f"slower than {winner.name}"
    else:
        reason = f"{winner.name} has priority {winner.priority}" + (
            "" if winner.priority > c.priority else " too"
        )
    return Candidate(c.kernel, c.op, c.storage, c.rows, True, reason is None, reason, c.priority, c.time_us)


def _no_kernel(
    layout: Layout,
    shape: Shape,
    ops: Sequence[Op],
    dtype: str,
    device: str,
    policy: Policy,
    candidates: Sequence[Candidate],
    tensor: str | None,
) -> NoKernelError:
    lines: dict[str, str] = {}
    for c in candidates:
        if not c.ok and c.reason is not None:
            lines.setdefault(c.kernel, c.reason)
    size = "x".join(str(n) for n in shape)
    hints = [what_to_install(layout.family, device)]
    hints += [f"Plugin {p.name!r} ({p.dist}) is not in use: {p.error}" for p in registry().failures]
    return NoKernelError(
        f"no kernel can run {'+'.join(ops)} {layout} [{size}] on {device}, {dtype} activations,"
        f" numerics {policy.numerics}",
        candidates=tuple(lines.items()),
        tensor=tensor,
        hint="\n".join(hints),
    )

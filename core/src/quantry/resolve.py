"""Which kernel runs a weight, in which storage, and why each other candidate does not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantry.convert import reachable
from quantry.devices import DeviceInfo
from quantry.errors import NoKernelError
from quantry.hints import what_to_install
from quantry.kernel import BUCKETS, Kernel, Numerics, Op, Problem, bucket_index
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import Policy
from quantry.timings import Timings, timings_of

__all__ = ["Candidate", "Decision", "candidates_of", "resolve", "timings_for", "wanted_keys"]

SLACK_BYTES = (
    256 << 10
)  # padding N to a panel of 16 rows may grow a small weight by more than its layout permits
_NEAR = 1.05  # times this near are one: noise must not decide, and equal kernels of neighbours can be fused
_TIMED_SHARE = 0.5  # of the row counts' weight must be timed before times compare storages
# one row decides decoding; the rest is spread evenly (design guess until measured on real models)
_WEIGHTS = (0.6, *[0.4 / (len(BUCKETS) - 1)] * (len(BUCKETS) - 1))


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


Key = tuple[str, int]
"""An op and the index of a row bucket."""
Able = dict[Key, list[tuple[Kernel, float | None]]]
"""The kernels that can run a storage, with their µs where known."""


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
    timings: Timings | None = None,
) -> Decision:
    """Choose one storage for the weight and one kernel per op and row bucket.

    rows: only the bucket of this row count, where one call is all there is. partial: where no storage serves
    every bucket, take the one that serves most; the buckets it lacks have no kernel in the decision.
    timings: those of the device unless the policy forbids them.

    Storages are the weight's own layout and, unless `keep_storage`, what exact conversions reach. The order
    is total: a time is compared with times only, so where one candidate of a comparison was never timed (a
    plugin installed yesterday) all of them are compared by priority, then kernels of the layout's own
    plugin, then the name; so are those whose times are within 5 % of the least. Storages are compared by the
    µs of the row buckets in which every candidate was timed, if these make up half of the weight.
    Raises NoKernelError, carrying every candidate, when nothing serves what was asked.
    """
    info = registry().device(device)
    timings = timings_for(info, policy) if timings is None else timings
    candidates: list[Candidate] = []
    able: dict[Layout, Able] = {}
    wanted = wanted_keys(ops, rows)
    for storage in [layout] if keep_storage else list(reachable(layout, shape)):
        for key in wanted:
            for kernel, problem, reason in candidates_of(
                layout, storage, shape, key, dtype, info, policy, timings
            ):
                time_us = timings.time_us(kernel, problem) if timings and reason is None else None
                candidates.append(
                    Candidate(
                        kernel.name, key[0], str(storage), problem.rows, reason is None, False, reason,
                        kernel.priority, time_us,
                    )
                )  # fmt: skip
                if reason is None:
                    able.setdefault(storage, {}).setdefault(key, []).append((kernel, time_us))
    trials = {s: kernels for s, kernels in able.items() if partial or len(kernels) == len(wanted)}
    if not trials:
        raise _no_kernel(layout, shape, ops, dtype, str(info), policy, candidates, tensor)
    storage = _best_storage(trials, wanted, layout)
    kernels = {key: _best(found, storage) for key, found in trials[storage].items()}
    return Decision(layout, shape, storage, kernels, tuple(_explained(candidates, storage, kernels)))


def candidates_of(
    layout: Layout,
    storage: Layout,
    shape: Shape,
    key: Key,
    dtype: str,
    info: DeviceInfo,
    policy: Policy,
    timings: Timings | None,
) -> Iterator[tuple[Kernel, Problem, str | None]]:
    """(kernel, its problem, why it cannot or None) of every kernel of one op on a storage of the weight."""
    op: Op = key[0]  # type: ignore[assignment]
    problem = Problem(op, storage, shape, _buckets_of(op)[key[1]], dtype, info, policy.numerics)
    grown = _growth(layout, storage, shape, policy)
    for kernel in registry().kernels:
        if kernel.op == op and kernel.family in (storage.family, "*"):
            reason = grown or _why_not(kernel, problem, policy)
            if reason is None and timings is not None:
                reason = timings.failure(kernel, problem)
            yield kernel, problem, reason


def timings_for(info: DeviceInfo, policy: Policy) -> Timings | None:
    """The times that a choice may use: none where the policy measures nothing."""
    return None if policy.measure == "off" else timings_of(info)


def wanted_keys(ops: Sequence[Op], rows: int | None) -> list[Key]:
    """Op and bucket of everything that is resolved, or of the calls with `rows` rows."""
    return [
        (op, i)
        for op in ops
        for i in range(len(_buckets_of(op)))
        if rows is None or op == "embedding" or i == bucket_index(rows)
    ]


def _best_storage(trials: Mapping[Layout, Able], wanted: Sequence[Key], own: Layout) -> Layout:
    """The one that lacks least, then the fastest, then the weight's own, then by name."""
    timed = [k for k in wanted if all(k in able and _all_timed(able[k]) for able in trials.values())]
    by_time = _weight(timed) >= _TIMED_SHARE * _weight(wanted)

    def cost(storage: Layout) -> tuple[float, float, bool, str]:
        able = trials[storage]
        lacking = _weight([key for key in wanted if key not in able])
        if by_time:
            score = sum(_WEIGHTS[k[1]] * min(us for _, us in able[k] if us is not None) for k in timed)
        else:
            score = sum(-_WEIGHTS[k[1]] * max(kernel.priority for kernel, _ in able[k]) for k in able)
        return lacking, score, storage != own, str(storage)

    return min(trials, key=cost)


def _best(able: Sequence[tuple[Kernel, float | None]], storage: Layout) -> Kernel:
    """The fastest where all were timed, and of those that are near it as of all others the preferred one."""
    if _all_timed(able):
        fastest = min(us for _, us in able if us is not None)
        able = [(kernel, us) for kernel, us in able if us is not None and us <= _NEAR * fastest]

    def rank(kernel: Kernel) -> tuple[int, bool, str]:
        family, mine = registry().owner("layouts", storage.family), registry().owner("kernels", kernel.name)
        foreign = family is None or mine is None or family.name != mine.name
        return -kernel.priority, foreign, kernel.name

    return min((kernel for kernel, _ in able), key=rank)


def _all_timed(able: Sequence[tuple[Kernel, float | None]]) -> bool:
    return all(time_us is not None for _, time_us in able)


def _weight(keys: Sequence[Key]) -> float:
    return sum(_WEIGHTS[i] for _, i in keys)


def _buckets_of(op: str) -> tuple[int, ...]:
    return BUCKETS[:1] if op == "embedding" else BUCKETS


def _growth(layout: Layout, storage: Layout, shape: Shape, policy: Policy) -> str | None:
    own, packed = layout.nbytes(shape), storage.nbytes(shape)
    if policy.memory == "fast" or packed <= max(own * layout.growth, own + SLACK_BYTES):
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


def _explained(
    candidates: Sequence[Candidate], storage: Layout, kernels: Mapping[Key, Kernel]
) -> Iterator[Candidate]:
    """The candidates with the reason of each that could run and was not chosen."""
    times = {(c.kernel, c.op, c.rows): c.time_us for c in candidates if c.storage == str(storage)}
    for c in candidates:
        winner = kernels.get((c.op, _buckets_of(c.op).index(c.rows)))
        if not c.ok:
            yield c
        elif winner is not None and (c.storage, c.kernel) == (str(storage), winner.name):
            yield replace(c, chosen=True)
        else:
            best = None if winner is None else times.get((winner.name, c.op, c.rows))
            yield replace(c, reason=_why_not_chosen(c, winner, str(storage), best))


def _why_not_chosen(c: Candidate, winner: Kernel | None, storage: str, best_us: float | None) -> str:
    elsewhere = c.storage != storage
    if winner is not None and c.time_us is not None and best_us is not None and c.time_us >= best_us:
        where = f" on {storage}" if elsewhere else ""
        return f"slower than {winner.name}{where}: {_us(c.time_us)} against {_us(best_us)} µs"
    if winner is None or elsewhere:
        return f"the weight is stored as {storage}"
    why = f"{winner.name} has priority {winner.priority}" + ("" if winner.priority > c.priority else " too")
    if c.time_us is None or best_us is None:
        return why
    near = best_us <= _NEAR * c.time_us
    return f"{why} and is within {_NEAR - 1:.0%}" if near else f"{why}; not every candidate was timed"


def _us(time_us: float) -> str:
    return f"{time_us:.0f}" if time_us >= 100 else f"{time_us:.3g}"


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

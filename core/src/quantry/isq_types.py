"""Which ISQ type a name or a width stands for, and why each other type of that width does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from quantry.errors import NoKernelError, UsageError, nearest
from quantry.kernel import Kernel, Problem
from quantry.layout import Shape
from quantry.plugins import registry
from quantry.policy import Policy, current_policy
from quantry.quantizer import Quantizer, canonical_name
from quantry.resolve import resolve, timings_for

__all__ = ["TypeCandidate", "TypeChoice", "choose_type", "resolve_quantizer"]

_SHAPE: Shape = (4096, 4096)  # large enough that decoding reads memory and little else
_SOURCE = "bf16"  # what checkpoints hold
_SECONDS = 1.0  # for kernels that were never timed
_AS_FAST = 1.25  # types of one width differ by their scales: up to 5 bits a weight where 4.25 do


@dataclass(frozen=True, slots=True)
class TypeCandidate:
    """An installed type of the wanted width. expected_error: of normal weights, as its plugin declares.

    kernel, time_us: of one row on a 4096 x 4096 weight, where it runs and was timed. reason: why it is not
    taken; of the chosen one, why it is.
    """

    type: str
    layout: str
    bits_per_weight: float
    expected_error: float | None
    native: bool
    priority: int
    kernel: str | None
    time_us: float | None
    ok: bool
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """What a width means on a device."""

    width: int
    device: str
    chosen: Quantizer
    candidates: tuple[TypeCandidate, ...]

    @property
    def sentence(self) -> str:
        """Why, for people."""
        reason = next(c.reason for c in self.candidates if c.chosen)
        return f"{self.width} bits on {self.device}: {self.chosen.name}, {reason}"

    def as_json(self) -> dict[str, Any]:
        """For `quantry explain --isq`."""
        return {
            "width": self.width,
            "device": self.device,
            "chosen": self.chosen.name,
            "candidates": [asdict(c) for c in self.candidates],
        }


def resolve_quantizer(name: str, device: str = "cpu", measure: bool = False) -> Quantizer:
    """The quantizer of an ISQ type, or of a width ("4") on the device where the weight will run.

    measure: as in `choose_type`. Raises UsageError that proposes the nearest name.
    """
    known = registry().quantizers
    key = canonical_name(str(name))
    if key.isdecimal():
        return choose_type(int(key), device, measure).chosen
    if key not in known:
        raise UsageError(
            f"unknown ISQ type {name!r}", hint=nearest(str(name), [q.name for q in known.values()])
        )
    return known[key]


def choose_type(width: int, device: str = "cpu", measure: bool = False) -> TypeChoice:
    """The installed type of a width that is fastest on a device, and of those as fast the most accurate.

    A type counts as fast where a kernel of the device runs it and one row takes at most 25 % longer than the
    fastest type's; of these the declared error decides, then the size. Where a time is missing, or the device
    is not at hand, plugins' declarations stand in: types made for the device, then `priority`, then error.
    measure: time what was never timed first, for up to a second, unless the policy measures nothing.
    Raises UsageError where no installed type has the width.
    """
    known = registry().quantizers
    fitting = [q for q in known.values() if q.width == width]
    if not fitting:
        widths = sorted({q.width for q in known.values() if q.width})
        raise UsageError(
            f"no installed ISQ type has width {width}",
            hint=f"Widths: {', '.join(map(str, widths)) or 'none'}.",
        )
    policy = current_policy()
    here = _at_hand(device)
    if measure and here and policy.measure != "off":
        _time(fitting, device, policy)
    found = [_candidate(q, device, here, policy) for q in fitting]
    able = [c for c in found if c.ok] or found
    timed = here and all(c.time_us is not None for c in able)
    fast = able
    if timed:
        least = min(c.time_us for c in able if c.time_us is not None)
        fast = [c for c in able if c.time_us is not None and c.time_us <= _AS_FAST * least]
    best = min(fast, key=_by_accuracy if timed else _by_declaration)
    explained = [_explained(c, best, fast, timed) for c in found]
    explained.sort(key=lambda c: (not c.chosen, not c.ok, c.time_us or 0.0, c.type))
    return TypeChoice(width, device, known[canonical_name(best.type)], tuple(explained))


def _by_accuracy(c: TypeCandidate) -> tuple[float, float, int, str]:
    error = float("inf") if c.expected_error is None else c.expected_error
    return error, c.bits_per_weight, -c.priority, c.type


def _by_declaration(c: TypeCandidate) -> tuple[bool, int, float, float, str]:
    error, bits, priority, name = _by_accuracy(c)
    return not c.native, priority, error, bits, name


def _at_hand(device: str) -> bool:
    try:
        registry().device(device)
    except UsageError:
        return False
    return True


def _time(fitting: Sequence[Quantizer], device: str, policy: Policy) -> None:
    from quantry.measurement import WeightUse, measure

    uses = [
        WeightUse(q.layout_for(_SHAPE, _SOURCE), _SHAPE, device=device, policy=policy)
        for q in fitting
        if q.why_not(_SHAPE, _SOURCE) is None
    ]
    measure(uses, seconds=_SECONDS, rows=1, alone=True)


def _candidate(q: Quantizer, device: str, here: bool, policy: Policy) -> TypeCandidate:
    layout = q.layout_for(_SHAPE, _SOURCE)
    bits = 8 * layout.nbytes(_SHAPE) / (_SHAPE[0] * _SHAPE[1])
    native = device.partition(":")[0] in q.native_on
    found = TypeCandidate(
        q.name, str(layout), bits, q.expected_error, native, q.priority, None, None, native, False, ""
    )
    if not here:
        made = "is made for it" if native else f"is made for {', '.join(q.native_on) or 'no device'}"
        return replace(found, reason=f"{device} is not at hand; {q.name} {made}")
    try:
        decision = resolve(layout, _SHAPE, ("linear",), "f32", device, policy, rows=1)
    except NoKernelError:
        return replace(found, ok=False, reason=f"no installed kernel multiplies by {layout} on {device}")
    kernel = decision.kernels["linear", 0]
    return replace(
        found, ok=True, kernel=kernel.name, time_us=_time_of(kernel, decision.storage, device, policy)
    )


def _time_of(kernel: Kernel, storage: Any, device: str, policy: Policy) -> float | None:
    info = registry().device(device)
    timings = timings_for(info, policy)
    problem = Problem("linear", storage, _SHAPE, 1, "f32", info, policy.numerics)
    return None if timings is None else timings.time_us(kernel, problem)


def _explained(
    c: TypeCandidate, best: TypeCandidate, fast: Sequence[TypeCandidate], timed: bool
) -> TypeCandidate:
    if c is best:
        if not timed and len(fast) > 1:
            return replace(c, chosen=True, reason="preferred by its plugin; times are not known")
        why = "the fastest" if timed else "the only one to choose from"
        if len(fast) > 1:
            why = f"the most accurate of {len(fast)} types that are as fast"
        return replace(c, chosen=True, reason=why)
    if not c.ok:
        return c
    if c not in fast and c.time_us is not None and best.time_us is not None:
        least = min(f.time_us for f in fast if f.time_us is not None)
        return replace(c, reason=f"takes {c.time_us / least:.2f} times as long as the fastest")
    if not timed:
        if c.native != best.native:
            return replace(c, reason=f"{best.type} is made for this device")
        if c.priority != best.priority:
            return replace(c, reason=f"{best.type} has priority {best.priority}, this one {c.priority}")
    errors = f"{_error(c)} against {_error(best)} of {best.type}"
    return replace(c, reason=f"less accurate or larger: error {errors}")


def _error(c: TypeCandidate) -> str:
    return "unknown" if c.expected_error is None else f"{c.expected_error:.3g}"

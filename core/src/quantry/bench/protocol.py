"""How times are taken: rotated copies, a roof probe before and after each call, all subjects interleaved.

Machines change speed from second to second, caches keep what was read last, and another library's threads
spin for a while. So a figure here is a ratio to what the memory gave in the same millisecond, and medians
are taken of ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "MOST_PROBE_BYTES",
    "Figures",
    "Rotation",
    "Sample",
    "Stopwatch",
    "Subject",
    "figures",
    "interleave",
    "kept",
]

MOST_PROBE_BYTES = 256 << 20
SLOW_PROBE = 0.6
"""The drop rule, on probes alone: a sample goes when the slower of its two probes ran at less than this share
of the median of its subject's probes. Then something else had the memory, or the cores."""


class Rotation:
    """Copies of one weight; `next` is the one that was read longest ago, whichever subject read it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._turn = -1

    def next(self) -> int:
        """Index of the least recently used copy."""
        self._turn = (self._turn + 1) % self.count
        return self._turn


@dataclass(frozen=True, eq=False)
class Subject:
    """One kernel or peer on one problem. call(i) runs it on copy i and may be asynchronous.

    nbytes: read by a call. operations: 2·M·N·K. unit: the peak it is held against ("int8", "bf16", "f32").
    """

    label: str
    call: Callable[[int], object]
    copies: Rotation
    nbytes: int
    operations: int
    unit: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed call. before, after: bytes a second of the probes around it. peak: operations a second."""

    round: int
    seconds: float
    before: float
    after: float
    peak: float

    def fraction(self, subject: Subject) -> float:
        """The time that memory and arithmetic need at least, the longer of both, over the time taken."""
        reading = subject.nbytes / ((self.before + self.after) / 2)
        return max(reading, subject.operations / self.peak) / self.seconds


@dataclass(frozen=True)
class Stopwatch:
    """The machine as the protocol sees it; tests put their own in its place.

    read: bytes → seconds of a roof probe. peaks: operations a second by unit. wait: until the device is done.
    """

    read: Callable[[int], float]
    peaks: Callable[[], Mapping[str, float]]
    wait: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter

    def time(self, subject: Subject) -> float:
        """Seconds of one call on the least recently used copy."""
        copy = subject.copies.next()
        start = self.clock()
        subject.call(copy)
        self.wait()
        return self.clock() - start

    def bandwidth(self, nbytes: int) -> float:
        """Bytes a second of a probe as large as what a subject reads."""
        probed = max(min(nbytes, MOST_PROBE_BYTES), 1)
        return probed / self.read(probed)


@dataclass
class _Progress:
    rounds: int
    samples: list[Sample] = field(default_factory=list)


def interleave(
    subjects: Sequence[Subject],
    watch: Stopwatch,
    rounds: int,
    most_s: float = 20.0,
    tick: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> tuple[dict[Subject, list[Sample]], list[Mapping[str, float]]]:
    """The samples of every subject, taken in turns whose order rotates, and the peaks of every round.

    A subject whose rounds would take more than `most_s` seconds takes part in the first of them only.
    """
    if not subjects:
        return {}, []
    progress = {s: _Progress(_affordable(s, watch, rounds, most_s)) for s in subjects}
    peaks: list[Mapping[str, float]] = []
    for turn in range(max(p.rounds for p in progress.values())):
        peaks.append(dict(watch.peaks()))
        first = turn % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            tick(turn, rounds, subject.label)
            if turn < progress[subject].rounds:
                progress[subject].samples.append(_sample(subject, watch, turn, peaks[-1]))
    return {s: p.samples for s, p in progress.items()}, peaks


def _affordable(subject: Subject, watch: Stopwatch, rounds: int, most_s: float) -> int:
    seconds = watch.time(subject)
    if 2 * seconds * rounds > most_s:
        seconds = watch.time(subject)  # the first call may have built something
    return max(1, min(rounds, int(most_s / max(2 * seconds, 1e-9))))


def _sample(subject: Subject, watch: Stopwatch, turn: int, peaks: Mapping[str, float]) -> Sample:
    watch.time(subject)  # takes what another library's spinning threads or a pause cost the next call
    before = watch.bandwidth(subject.nbytes)
    seconds = watch.time(subject)
    after = watch.bandwidth(subject.nbytes)
    peak = peaks.get(subject.unit, peaks.get("f32", float("inf")))
    return Sample(turn, seconds, before, after, peak)


def kept(samples: Sequence[Sample]) -> list[Sample]:
    """What the drop rule leaves; all of them if it would leave none."""
    usual = statistics.median(probe for s in samples for probe in (s.before, s.after))
    return [s for s in samples if min(s.before, s.after) >= SLOW_PROBE * usual] or list(samples)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the samples of one subject say; quartiles are (25 %, 75 %), gbps and gflops at the median time."""

    time_us: float
    time_us_min: float
    time_us_quartiles: tuple[float, float]
    gbps: float
    gflops: float
    roof_fraction: float
    roof_fraction_quartiles: tuple[float, float]
    samples: int
    dropped: int


def figures(subject: Subject, samples: Sequence[Sample]) -> Figures:
    """Medians and quartiles of the samples that the drop rule leaves."""
    good = kept(samples)
    times = sorted(1e6 * s.seconds for s in good)
    fractions = sorted(s.fraction(subject) for s in good)
    middle = statistics.median(times)
    return Figures(
        time_us=middle,
        time_us_min=times[0],
        time_us_quartiles=(_quantile(times, 0.25), _quantile(times, 0.75)),
        gbps=subject.nbytes / middle / 1e3,
        gflops=subject.operations / middle / 1e3,
        roof_fraction=statistics.median(fractions),
        roof_fraction_quartiles=(_quantile(fractions, 0.25), _quantile(fractions, 0.75)),
        samples=len(good),
        dropped=len(samples) - len(good),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

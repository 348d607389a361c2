"""`benchmark`: every kernel and peer on every problem, as one document."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from quantry.bench.choice import default_layouts, layout_named, shape_named
from quantry.bench.entrants import Entrant, KernelEntrants, PeerEntrants, copies_of
from quantry.bench.machine import describe, memory_bytes
from quantry.bench.peers import all_peers
from quantry.bench.peers.peer import Peer
from quantry.bench.protocol import Figures, Sample, Stopwatch, figures, interleave, kept
from quantry.errors import NoKernelError, UsageError
from quantry.kernel import NumericsMode
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import check_numerics
from quantry.roof import Roof

__all__ = ["GEMM_ROWS", "Settings", "benchmark", "roof_of", "settings_from", "times_faster"]

GEMM_ROWS = 16
"""From here on arithmetic sets the pace: rounds are long, and few are enough."""
_ROUNDS, _GEMM_ROUNDS = 40, 6
_MEMORY_SHARE = 0.25  # peers hold about as much again
Say = Callable[[str], None]
Tick = Callable[[int, int, str], None]
_MODES: tuple[NumericsMode, ...] = ("exact", "strict", "fast")


@dataclass(frozen=True)
class Settings:
    """What to bench. Empty `layouts`: those that kernels here can run. rounds: None = 40, or 6 from 16 rows
    on."""

    layouts: Sequence[Layout] = ()
    shapes: Sequence[Shape] = ((14336, 4096),)
    batches: Sequence[int] = (1,)
    numerics: Sequence[NumericsMode] = ("strict",)
    dtype: str = "f32"
    device: str = "cpu"
    threads: int | None = None
    rounds: int | None = None
    peers: bool = False
    every: bool = True
    most_s: float = 20.0


def benchmark(
    settings: Settings,
    say: Say = lambda sentence: None,
    tick: Tick = lambda done, total, label: None,
) -> dict[str, Any]:
    """The JSON document of `quantry bench`. say: one sentence about something left out or lost.

    Raises NoKernelError when no kernel can run any of the layouts.
    """
    before = torch.get_num_threads()
    threads = settings.threads or before
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return _document(settings, threads, say, tick)
    finally:
        torch.set_num_threads(before)


def roof_of(device: str) -> Roof:
    """The probes to use for a device: of those that run, the ones of highest priority."""
    kind = registry().device(device).type
    able = [r for r in registry().roofs if r.device in (kind, "*") and r.why_not(device) is None]
    return max(able, key=lambda r: (r.priority, r.name))


def _document(settings: Settings, threads: int, say: Say, tick: Tick) -> dict[str, Any]:
    roof, device = roof_of(settings.device), registry().device(settings.device)
    peers = _installed(all_peers(), say) if settings.peers else []
    run = _Run(settings, threads, _watch(roof, threads, settings.device), peers, say, tick)
    for shape in settings.shapes:
        run.take(shape)
    if not run.rows:
        raise run.refusals[0] if run.refusals else UsageError("no layout fits any of the shapes")
    lost, taken = (sum(row[key] for row in run.rows) for key in ("dropped", "samples"))
    say(f"{lost} of {taken + lost} samples dropped: a probe beside them was slow")
    return {
        "device": str(device),
        "device_name": device.name,
        "roof": roof.name,
        **_roof_figures(run.probes, run.peaks),
        "dropped": lost,
        "machine": describe(device, threads, [p.dist for p in peers]),
        "rows": run.rows,
    }


@dataclass
class _Run:
    """What is taken, problem by problem."""

    settings: Settings
    threads: int
    watch: Stopwatch
    peers: Sequence[Peer]
    say: Say
    tick: Tick
    rows: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[NoKernelError] = field(default_factory=list)
    peaks: list[Mapping[str, float]] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    def take(self, shape: Shape) -> None:
        """Every layout and row count of one shape; weights are made once for all row counts."""
        for part in _batches(_fitting(self.settings, shape, self.say), shape):
            kernels = [KernelEntrants(layout, shape, self.settings.device, self.say) for layout in part]
            others = PeerEntrants(self.peers, part, shape, self.threads, self.say)
            for m in self.settings.batches:
                self.tick(0, 1, f"weights of {shape[0]}x{shape[1]}")
                entrants = self._kernels_at(kernels, m)
                self._compare(entrants + others.at(m) if entrants else [], shape, m)

    def _kernels_at(self, kernels: Sequence[KernelEntrants], m: int) -> list[Entrant]:
        modes = [mode for mode in _MODES if mode in self.settings.numerics]
        found = []
        for one in kernels:
            found += one.at(m, self.settings.dtype, modes, self.settings.every)
            if one.refusal is not None:
                self.refusals.append(one.refusal)
                self.say(f"left out: {one.refusal.problem}")
        return found

    def _compare(self, entrants: Sequence[Entrant], shape: Shape, m: int) -> None:
        rounds = self.settings.rounds or (_GEMM_ROUNDS if m >= GEMM_ROWS else _ROUNDS)
        subjects = [e.subject for e in entrants]
        samples, peaks = interleave(subjects, self.watch, rounds, self.settings.most_s, self.tick)
        self.peaks += peaks
        self.probes += [probe for taken in samples.values() for s in taken for probe in (s.before, s.after)]
        self.rows += _rows(entrants, samples, shape, m)


def _installed(peers: Iterable[Peer], say: Say) -> list[Peer]:
    found = []
    for peer in peers:
        reason = peer.why_not()
        if reason is None:
            found.append(peer)
        else:
            say(reason)
    return found


def _watch(roof: Roof, threads: int, device: str) -> Stopwatch:
    def peaks() -> Mapping[str, float]:
        return {kind: 1e9 * gops for kind, gops in roof.peaks(threads, device).items()}

    def wait() -> None:
        torch.accelerator.synchronize(device)

    read = functools.partial(roof.read, threads=threads, device=device)
    if device.partition(":")[0] == "cpu":
        return Stopwatch(read, peaks)
    return Stopwatch(read, peaks, wait)


def _fitting(settings: Settings, shape: Shape, say: Say) -> list[Layout]:
    if not settings.layouts:
        return default_layouts(shape, settings.device, settings.dtype, settings.numerics)
    fitting = []
    for layout in settings.layouts:
        reason = layout.why_not(shape)
        if reason is None:
            fitting.append(layout)
        else:
            say(f"{layout} is left out at {shape[0]}x{shape[1]}: {reason}")
    return fitting


def _batches(layouts: Sequence[Layout], shape: Shape) -> Iterator[list[Layout]]:
    """As many layouts at a time as memory holds copies of."""
    room, used = _MEMORY_SHARE * memory_bytes(), 0.0
    part: list[Layout] = []
    for layout in layouts:
        nbytes = layout.nbytes(shape)
        need = 2.0 * nbytes * copies_of(nbytes)  # two storages at most are usual
        if part and used + need > room:
            yield part
            part, used = [], 0.0
        part.append(layout)
        used += need
    if part:
        yield part


def _rows(
    entrants: Sequence[Entrant], samples: Mapping[Any, list[Sample]], shape: Shape, m: int
) -> Iterator[dict[str, Any]]:
    peers = [e for e in entrants if e.peer is not None]
    for e in entrants:
        found: Figures = figures(e.subject, samples[e.subject])
        yield {
            "kernel": e.kernel,
            "peer": e.peer,
            "layout": e.layout,
            "storage": e.storage,
            "numerics": e.numerics,
            "activations": e.activations,
            "dtype": e.dtype,
            "chosen": e.chosen,
            "n": shape[0],
            "k": shape[1],
            "m": m,
            "nbytes": e.subject.nbytes,
            **dataclasses.asdict(found),
            "over_peers": {}
            if e.peer is not None
            else {
                f"{p.peer} {p.kernel} {p.layout}": ratio
                for p in peers
                if (ratio := times_faster(samples[e.subject], samples[p.subject])) is not None
            },
        }


def times_faster(mine: Sequence[Sample], theirs: Sequence[Sample]) -> float | None:
    """The median over rounds of a peer's time by ours, in rounds where neither was dropped."""
    other = {s.round: s.seconds for s in kept(theirs)}
    ratios = [other[s.round] / s.seconds for s in kept(mine) if s.round in other]
    return statistics.median(ratios) if ratios else None


def _roof_figures(probes: Sequence[float], peaks: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    speeds = sorted(p / 1e9 for p in probes)
    by_type = {
        kind: statistics.median(p[kind] for p in peaks if kind in p) / 1e9
        for kind in sorted({kind for p in peaks for kind in p})
    }
    return {
        "roof_gbps": statistics.median(speeds),
        "roof_gbps_p10": speeds[len(speeds) // 10],
        "roof_gbps_max": speeds[-1],
        "peak_gflops": max(by_type.values()),
        "peak_gflops_by_type": by_type,
    }


def settings_from(
    layouts: Sequence[str],
    shapes: Sequence[str],
    batches: Sequence[int],
    numerics: Sequence[str],
    device: str,
    dtype: str,
    *,
    threads: int | None = None,
    rounds: int | None = None,
    peers: bool = False,
    chosen: bool = False,
) -> Settings:
    """Settings from a command line's words. Raises UsageError for those that mean nothing."""
    registry().device(device)
    if dtype not in ("f32", "bf16", "f16"):
        raise UsageError(f"activations are f32, bf16 or f16, not {dtype!r}")
    sizes = [shape_named(text) for text in shapes]
    return Settings(
        [layout_named(text, sizes[0]) for text in layouts],
        sizes,
        batches,
        [check_numerics(mode) for mode in numerics],
        dtype,
        device,
        threads,
        rounds,
        peers,
        not chosen,
    )

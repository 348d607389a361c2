"""`quantry bench`: the protocol on a made-up clock, entrants, the command, a missing peer."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from toys import ToyRows

import quantry
from quantry import Kernel, KernelError, Numerics, Roof, UsageError, hookimpl
from quantry.bench import entrants as entrants_module
from quantry.bench.choice import USUAL, default_layouts, layout_named, shape_named
from quantry.bench.entrants import KernelEntrants, PeerEntrants, copies_of
from quantry.bench.peers import all_peers
from quantry.bench.peers.peer import Peer, PeerWeight, group_of, width_of
from quantry.bench.plot import draw
from quantry.bench.protocol import Rotation, Sample, Stopwatch, Subject, figures, interleave, kept
from quantry.bench.run import Settings, benchmark, roof_of, settings_from, times_faster
from quantry.cli import cli
from quantry.testing import installed

GB = 10**9


class Machine:
    """A clock that moves only as subjects and probes say."""

    def __init__(self, bandwidths: Iterable[float] = (), peak: float = 1e12) -> None:
        self.now, self.log = 0.0, []
        self.bandwidths, self.peak = iter(bandwidths), peak

    def subject(self, label: str, seconds: float, copies: Rotation, operations: int = 0) -> Subject:
        def call(copy: int) -> None:
            self.now += seconds
            self.log.append((label, copy))

        return Subject(label, call, copies, GB, operations, "f32")

    def read(self, nbytes: int) -> float:
        self.log.append(("probe", nbytes))
        return nbytes / next(self.bandwidths, 10 * GB)

    def watch(self) -> Stopwatch:
        return Stopwatch(self.read, lambda: {"f32": self.peak}, clock=lambda: self.now)


def names(log: list[tuple[str, int]]) -> list[str]:
    return [name for name, _ in log]


def test_subjects_that_share_copies_never_meet_the_one_just_read():
    machine, copies = Machine(), Rotation(4)
    both = [machine.subject("a", 1.0, copies), machine.subject("b", 1.0, copies)]
    interleave(both, machine.watch(), rounds=5)
    used = [copy for name, copy in machine.log if name != "probe"]
    assert len(used) == 2 + 5 * 4
    for i in range(len(used) - 3):
        assert len(set(used[i : i + 4])) == 4


def test_a_sample_is_a_warm_call_and_a_timed_one_between_two_probes():
    machine = Machine()
    interleave([machine.subject("a", 1.0, Rotation(4))], machine.watch(), rounds=2)
    assert names(machine.log) == ["a"] + 2 * ["a", "probe", "a", "probe"]


def test_the_order_rotates_from_round_to_round():
    machine = Machine()
    three = [machine.subject(name, 1.0, Rotation(4)) for name in "abc"]
    interleave(three, machine.watch(), rounds=3)
    firsts = [name for name in names(machine.log) if name != "probe"][3:][::2]
    assert firsts == list("abcbcacab")


def test_a_slow_subject_takes_part_in_fewer_rounds():
    machine = Machine()
    quick, slow = (machine.subject(name, s, Rotation(4)) for name, s in (("quick", 0.1), ("slow", 3.0)))
    samples, peaks = interleave([quick, slow], machine.watch(), rounds=10, most_s=12.0)
    assert (len(samples[quick]), len(samples[slow]), len(peaks)) == (10, 2, 10)


def test_a_probe_of_a_large_weight_is_bounded():
    machine = Machine()
    assert machine.watch().bandwidth(10 * GB) == pytest.approx(10 * GB)
    assert machine.log == [("probe", 256 << 20)]


def test_the_fraction_is_that_of_memory_or_of_arithmetic_whichever_takes_longer():
    machine = Machine()
    memory = machine.subject("a", 1.0, Rotation(4))
    arithmetic = machine.subject("b", 1.0, Rotation(4), operations=10**12)
    sample = Sample(0, seconds=0.5, before=4 * GB, after=6 * GB, peak=4e12)
    assert sample.fraction(memory) == pytest.approx(1 / 5 / 0.5)
    assert sample.fraction(arithmetic) == pytest.approx(1 / 4 / 0.5)


def test_the_drop_rule_looks_at_probes_only():
    def sample(i: int, seconds: float, before: float, after: float) -> Sample:
        return Sample(i, seconds, before * GB, after * GB, 1e12)

    good = [sample(i, 1.0, 10, 10) for i in range(8)]
    slow_call, slow_after = sample(8, 99.0, 10, 10), sample(9, 1.0, 10, 5.9)
    assert kept([*good, slow_call, slow_after]) == [*good, slow_call]
    assert kept([sample(0, 1.0, 10, 1), sample(1, 1.0, 1, 10)]) != []


def test_figures_are_medians_of_what_is_kept():
    machine = Machine()
    subject = machine.subject("a", 1.0, Rotation(4), operations=10**9)
    times = (0.1, 0.2, 0.3, 0.4, 0.5)
    samples = [Sample(i, t, 10 * GB, 10 * GB, 1e12) for i, t in enumerate(times)]
    samples.append(Sample(5, 0.01, 10 * GB, 1 * GB, 1e12))
    found = figures(subject, samples)
    assert (found.time_us, found.time_us_min) == pytest.approx((3e5, 1e5))
    assert found.time_us_quartiles == pytest.approx((2e5, 4e5))
    assert (found.gbps, found.gflops) == pytest.approx((1 / 0.3, 1 / 0.3))
    assert found.roof_fraction == pytest.approx(0.1 / 0.3)
    assert (found.samples, found.dropped) == (5, 1)


def test_copies_together_are_four_times_the_last_cache(monkeypatch):
    monkeypatch.setattr(entrants_module, "_last_cache", lambda: 32 << 20)
    assert copies_of(1 << 30) == 4
    assert copies_of(1 << 20) == 128
    assert copies_of(1) == 256


class FakeRoof(Roof):
    """A machine of 10 GB/s and 10¹² operations a second."""

    name, device, priority = "fake.roof", "cpu", 99

    def why_not(self, device: str) -> str | None:
        return None

    def read(self, nbytes: int, threads: int, device: str) -> float:
        return nbytes / 1e10

    def peaks(self, threads: int, device: str) -> dict[str, float]:
        return {"f32": 1000.0, "int8": 4000.0}


class RoofPlugin:
    @hookimpl
    def quantry_roofs(self):
        return [FakeRoof()]


@pytest.fixture
def fake_roof(monkeypatch):
    monkeypatch.setattr(entrants_module, "MOST_COPIES", 4)
    with installed(RoofPlugin(), alone=True):
        yield


@pytest.mark.usefixtures("fake_roof")
def test_the_roof_of_highest_priority_is_used_and_the_core_has_one_for_any_device():
    assert roof_of("cpu").name == "fake.roof"
    with installed(ModuleType("nothing"), alone=True):
        roof = roof_of("cpu")
        assert roof.name == "torch.roof"
        assert roof.read(1 << 20, 1, "cpu") > 0
        assert set(roof.peaks(1, "cpu")) >= {"f32"}


class Exact(Kernel):
    """Leaves activations as they are."""

    name, op, family, device = "rows.exact", "linear", "affine", "cpu"
    numerics = Numerics()

    def why_not(self, problem):
        return None

    def matmul(self, x, w, layout, shape, bias):
        return x.new_ones((*x.shape[:-1], shape[0]))


class Rounding(Exact):
    """Says that it rounds them."""

    name, numerics = "rows.rounding", Numerics(accumulate="i32", activations="int8")


class RowsPlugin:
    @hookimpl
    def quantry_kernels(self):
        return [Exact(), Rounding()]


def test_a_kernel_is_benched_once_under_the_first_numerics_that_admit_it():
    layout = layout_named("affine:b8,g0,in,none,f32", (32, 64))
    with installed(RowsPlugin(), alone=True):
        found = KernelEntrants(layout, (32, 64), "cpu", pytest.fail).at(2, "f32", ("exact", "strict", "fast"))
    said = sorted((e.kernel, e.numerics, e.subject.unit) for e in found)
    assert said == [("rows.exact", "exact", "f32"), ("rows.rounding", "fast", "int8")]
    assert {e.subject.operations for e in found} == {2 * 2 * 32 * 64}


@pytest.mark.usefixtures("fake_roof")
def test_a_call_of_an_entrant_multiplies_by_the_copy_it_names():
    layout = layout_named("dense:f32", (8, 16))
    (entrant,) = KernelEntrants(layout, (8, 16), "cpu", pytest.fail).at(3, "f32", ("exact",))
    first, second = entrant.subject.call(0), entrant.subject.call(1)
    assert first.shape == (3, 8)
    assert torch.equal(first, second)
    assert first.abs().max() > 0


@pytest.mark.usefixtures("fake_roof")
def test_the_document_has_the_keys_that_outsiders_read():
    found = benchmark(
        Settings([layout_named("dense:f32", (64, 64))], [(64, 64)], (1, 3), rounds=2, threads=1)
    )
    assert found["device"] == "cpu"
    assert found["roof_gbps"] == pytest.approx(10)
    assert found["peak_gflops"] == pytest.approx(4000)
    assert [r["m"] for r in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert (row["kernel"], row["peer"], row["layout"]) == ("torch.linear", None, "dense:f32")
        assert (row["n"], row["k"], row["numerics"], row["chosen"]) == (64, 64, "strict", True)
        assert row["gflops"] == pytest.approx(2 * row["m"] * 64 * 64 / row["time_us"] / 1e3)
        assert row["gbps"] == pytest.approx(64 * 64 * 4 / row["time_us"] / 1e3)
        assert row["samples"] + row["dropped"] == 2
    assert found["machine"]["threads"] == 1
    json.dumps(found)


@pytest.mark.usefixtures("fake_roof")
def test_torchs_threads_are_as_before():
    before = torch.get_num_threads()
    benchmark(Settings([layout_named("dense:f32", (8, 8))], [(8, 8)], rounds=1, threads=before + 1))
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("fake_roof")
def test_a_layout_that_nothing_runs_is_said_and_alone_it_is_an_error():
    said: list[str] = []
    lonely, dense = (layout_named(text, (8, 64)) for text in ("affine:b3,g32,in,int,f16", "dense:f32"))
    found = benchmark(Settings([lonely, dense], [(8, 64)], rounds=1), said.append)
    assert {r["layout"] for r in found["rows"]} == {"dense:f32"}
    assert any(str(lonely) in sentence for sentence in said)
    with pytest.raises(quantry.NoKernelError) as e:
        benchmark(Settings([lonely], [(8, 64)], rounds=1))
    assert e.value.candidates


@pytest.mark.usefixtures("fake_roof")
def test_a_layout_that_does_not_fit_the_shape_is_said():
    said: list[str] = []
    layouts = [ToyRows(32), layout_named("dense:f32", (8, 72))]
    benchmark(Settings(layouts, [(8, 72)], rounds=1), said.append)
    assert "toy:32 is left out at 8x72: 72 columns are no multiple of 32" in said
    with pytest.raises(UsageError, match="no layout fits"):
        benchmark(Settings(layouts[:1], [(8, 72)], rounds=1))


@pytest.mark.usefixtures("fake_roof")
def test_the_default_is_what_kernels_here_run():
    texts = [str(layout) for layout in default_layouts((64, 128), "cpu", "f32", ("exact",))]
    assert "dense:f32" in texts
    assert "codebook:nf4,g64,f32" not in texts


@pytest.mark.parametrize("text", USUAL)
def test_the_usual_layouts_are_written_as_layouts_write_themselves(text):
    assert str(layout_named(text, (256, 1024))) == text


def test_words_are_read_or_refused_with_the_nearest():
    assert shape_named("640X2048") == (640, 2048)
    for wrong in ("640", "640x", "0x64", "axb", "-1x4"):
        with pytest.raises(UsageError, match="not a shape"):
            shape_named(wrong)
    with pytest.raises(UsageError, match="bf17"):
        layout_named("bf17", (8, 8))
    with pytest.raises(UsageError, match="affine"):
        layout_named("afine:b4", (8, 8))


def test_an_unknown_device_or_mode_is_wrong_usage():
    with pytest.raises(UsageError, match="tpu"):
        settings_from([], ["8x8"], [1], ["strict"], "tpu", "f32")
    with pytest.raises(UsageError, match="fastt"):
        settings_from([], ["8x8"], [1], ["fastt"], "cpu", "f32")
    with pytest.raises(UsageError, match="f64"):
        settings_from([], ["8x8"], [1], ["fast"], "cpu", "f64")


def test_a_ratio_pairs_the_rounds_that_neither_side_lost():
    def samples(times: dict[int, float], lost: int) -> list[Sample]:
        probes = {i: (GB if i == lost else 10 * GB) for i in times}
        return [Sample(i, t, probes[i], 10 * GB, 1e12) for i, t in times.items()]

    mine = samples({0: 1.0, 1: 2.0, 2: 1.0, 3: 50.0}, lost=3)
    theirs = samples({0: 3.0, 1: 8.0, 2: 50.0, 4: 50.0}, lost=2)
    assert times_faster(mine, theirs) == pytest.approx(3.5)
    assert times_faster(mine[:1], theirs[1:]) is None


class BrokenKernel(Kernel):
    """Says that it can and then cannot."""

    name, op, family, device, priority = "broken.linear", "linear", "dense", "cpu", 50
    numerics = Numerics()

    def why_not(self, problem):
        return None

    def matmul(self, x, w, layout, shape, bias):
        raise KernelError("no such instruction")


class BrokenPlugin(RoofPlugin):
    @hookimpl
    def quantry_kernels(self):
        return [BrokenKernel()]


def test_a_kernel_that_fails_is_said_and_the_others_are_benched():
    said: list[str] = []
    with installed(BrokenPlugin(), alone=True):
        layouts = [layout_named("dense:f32", (8, 8))]
        found = benchmark(Settings(layouts, [(8, 8)], (1, 2), rounds=1), said.append)
    assert [r["kernel"] for r in found["rows"]] == ["torch.linear", "torch.linear"]
    assert said.count("broken.linear on dense:f32 failed: no such instruction") == 1


class SlowPeer(Peer):
    """Calls that multiply nothing."""

    name, dist, modules, install = "snail", "snail", ("torch",), "pip install snail"

    def weights(self, layout, shape, threads):
        def at(m: int):
            return lambda i: i

        yield PeerWeight("crawl", "int4", "exact", "exact", "f32", "f32", 1000, lambda count: at)


class BrokenPeer(SlowPeer):
    name = "broken"

    def weights(self, layout, shape, threads):
        def make(count: int):
            raise OSError("no such symbol")

        yield PeerWeight("x", "int4", "exact", "exact", "f32", "f32", 1000, make)


@pytest.mark.usefixtures("fake_roof")
def test_peers_are_rows_and_ours_say_how_much_faster_they_are(monkeypatch):
    monkeypatch.setattr("quantry.bench.run.all_peers", lambda: [SlowPeer(), BrokenPeer()])
    said: list[str] = []
    layouts = [layout_named("dense:f32", (8, 8))]
    found = benchmark(Settings(layouts, [(8, 8)], rounds=3, peers=True), said.append)
    ours, theirs = found["rows"]
    assert (theirs["peer"], theirs["kernel"], theirs["over_peers"]) == ("snail", "crawl", {})
    assert list(ours["over_peers"]) == ["snail crawl int4"]
    assert any("broken x int4 failed: OSError: no such symbol" in sentence for sentence in said)


def test_a_weight_that_two_layouts_share_is_one_entrant():
    layouts = [layout_named(text, (8, 64)) for text in ("dense:f32", "dense:bf16")]
    peers = PeerEntrants([SlowPeer()], layouts, (8, 64), 1, pytest.fail)
    assert len(peers.at(1)) == 1


def test_the_width_of_a_layout_leaves_scales_out():
    widths = {"ggml:q4_k": 4, "ggml:q8_0": 8, "ggml:q6_k": 6, "affine:b3,g64,in,int,f16": 3}
    families = quantry.registry().layouts
    for text, width in widths.items():
        if text.partition(":")[0] in families:
            assert width_of(layout_named(text, (256, 1024))) == width
    assert group_of(layout_named("affine:b3,g64,in,int,f16", (256, 1024))) == 64


@pytest.mark.parametrize("peer", all_peers(), ids=lambda p: p.name)
def test_a_peer_that_is_not_installed_says_how_to_get_it(peer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for module in peer.modules:
        monkeypatch.setitem(sys.modules, module, None)
    reason = peer.why_not()
    assert reason is not None
    assert peer.install in reason or "AVX-512" in reason


@pytest.mark.peer
@pytest.mark.parametrize("peer", all_peers(), ids=lambda p: p.name)
def test_an_installed_peer_multiplies(peer):
    reason = peer.why_not()
    if reason is not None:
        pytest.skip(reason)
    texts = ["affine:b4,g128,in,int,f16", "affine:b8,g32,in,mid,f16"]
    texts += ["ggml:q4_0", "ggml:q6_k"] if "ggml" in quantry.registry().layouts else []
    layouts = [layout_named(text, (64, 512)) for text in texts]
    failures: list[str] = []
    entrants = PeerEntrants([peer], layouts, (64, 512), 1, failures.append)
    assert entrants.at(1)
    assert entrants.at(5)
    assert not failures


@pytest.mark.usefixtures("fake_roof")
def test_the_command_prints_json_or_a_table_and_nothing_else():
    options = ["bench", "--layout", "dense:f32", "--shape", "64x64", "--rounds", "2", "--threads", "1"]
    done = CliRunner().invoke(cli, [*options, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"][0]["kernel"] == "torch.linear"
    table = CliRunner().invoke(cli, options).stdout
    assert "torch.linear" in table
    assert "10.0 GB/s by fake.roof" in table


@pytest.mark.usefixtures("fake_roof")
def test_an_unknown_layout_ends_the_command_with_the_nearest():
    done = CliRunner().invoke(cli, ["bench", "--layout", "bf61", "--shape", "64x64"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Did you mean 'bf16'?" in done.stderr


@pytest.mark.usefixtures("fake_roof")
def test_a_picture_is_drawn(tmp_path):
    found = benchmark(Settings([layout_named("dense:f32", (8, 8))], [(8, 8)], (1, 2), rounds=1))
    draw(found, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="jpgg"):
        draw(found, tmp_path / "bench.jpgg")

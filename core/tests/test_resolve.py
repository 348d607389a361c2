"""The resolver: filters with reasons, a total order, one storage for all buckets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import quantry
from quantry import Conversion, Dense, Kernel, NoKernelError, Numerics, Policy, QuantizedTensor, hookimpl
from quantry.kernel import BUCKETS, Problem
from quantry.resolve import resolve
from quantry.testing.installed import installed
from quantry.timings import Timings

SHAPE = (32, 64)
POLICY = Policy()
MODES = ("off", "cached", "on")


class Slow(Kernel):
    name, op, family, device, priority = "t.slow", "linear", "affine", "cpu", 1
    numerics = Numerics()

    def why_not(self, problem):
        return "bits must be 4" if problem.layout.bits != 4 else None


class OneRow(Slow):
    name, priority = "t.one_row", 5

    def why_not(self, problem):
        return "one row only" if problem.rows > 1 else super().why_not(problem)


class Rounded(Slow):
    name, priority, numerics = "t.int8", 50, Numerics("i32", "int8/32")


class Gpu(Slow):
    name, device = "t.gpu", "cuda"


@dataclass(frozen=True)
class Plugin:
    kernels: tuple
    edges: tuple = ()

    @hookimpl
    def quantry_kernels(self):
        return self.kernels

    @hookimpl
    def quantry_conversions(self):
        return self.edges


def affine(bits=4, zero="int"):
    return quantry.registry().layout(f"affine:b{bits},g32,in,{zero},f16")


def decide(*kernels, layout=None, policy=POLICY, edges=(), **options):
    with installed(Plugin(kernels, edges), alone=True):
        return resolve(layout or affine(), SHAPE, ("linear",), "f32", "cpu", policy, **options)


def reasons(decision, rows=1):
    return {c.kernel: c.reason for c in decision.candidates if c.rows == rows}


def test_each_bucket_gets_its_best_kernel():
    plan = decide(Slow(), OneRow()).plan("linear")
    assert [k.name for k in plan] == ["t.one_row"] + ["t.slow"] * (len(BUCKETS) - 1)


def test_losers_carry_a_sentence():
    decision = decide(Slow(), OneRow(), Rounded(), Gpu())
    found = {k: r for k, r in reasons(decision).items() if k.startswith(("t.", "reference"))}
    assert found == {
        "t.slow": "t.one_row has priority 5",
        "t.one_row": None,
        "t.int8": "rounds activations to int8/32, which affine:b4,g32,in,int,f16 does not publish",
        "t.gpu": "runs on cuda, not on cpu",
        "reference": 'disabled (set reference="allow" to permit the slow tile-wise path)',
    }


@pytest.mark.parametrize(
    ("numerics", "chosen"), [("exact", "t.slow"), ("strict", "t.slow"), ("fast", "t.int8")]
)
def test_numerics_admit_rounded_activations_only_where_asked(numerics, chosen):
    assert decide(Slow(), Rounded(), policy=Policy(numerics)).plan("linear")[0].name == chosen


def test_equal_priorities_fall_back_to_the_name():
    class Twin(Slow):
        name = "t.aaa"

    assert decide(Slow(), Twin()).plan("linear")[0].name == "t.aaa"
    assert decide(Twin(), Slow()).plan("linear")[0].name == "t.aaa"


def timed(*rows, layout=None):
    """Times in memory: (kernel, µs, row bucket or None for all)."""
    timings = Timings({})
    info = quantry.registry().device("cpu")
    for kernel, time_us, only in rows:
        for count in BUCKETS if only is None else (only,):
            timings.record(kernel, Problem("linear", layout or affine(), SHAPE, count, "f32", info), time_us)
    return timings


def test_a_measured_time_beats_a_priority():
    decision = decide(Slow(), OneRow(), timings=timed((Slow(), 0.25, None), (OneRow(), 9.0, 1)))
    assert decision.plan("linear")[0].name == "t.slow"
    assert reasons(decision)["t.one_row"] == "slower than t.slow: 9 against 0.25 µs"


def test_a_time_is_never_compared_with_a_priority():
    """What was installed after the measurement competes as if nothing had been measured."""
    timings = timed((Slow(), 0.25, None))
    assert decide(Slow(), OneRow(), timings=timings).plan("linear")[0].name == "t.one_row"
    assert decide(OneRow(), Slow(), timings=timings).plan("linear")[0].name == "t.one_row"


def test_times_within_noise_are_one_and_the_priority_decides():
    near = decide(Slow(), OneRow(), timings=timed((Slow(), 10.0, None), (OneRow(), 10.4, 1)))
    assert near.plan("linear")[0].name == "t.one_row"
    assert reasons(near)["t.slow"] == "t.one_row has priority 5 and is within 5%"
    far = decide(Slow(), OneRow(), timings=timed((Slow(), 10.0, None), (OneRow(), 10.6, 1)))
    assert far.plan("linear")[0].name == "t.slow"


def test_a_faster_loser_hears_that_another_was_never_timed():
    class Third(Slow):
        name, priority = "t.third", 9

    timings = timed((Slow(), 1.0, None), (Third(), 8.0, None))
    decision = decide(Slow(), OneRow(), Third(), timings=timings)
    assert reasons(decision)["t.slow"] == "t.third has priority 9; not every candidate was timed"
    assert reasons(decision)["t.one_row"] == "t.third has priority 9"


def test_each_bucket_is_compared_alone():
    timings = timed((Slow(), 7.0, None), (OneRow(), 3.0, 1), (Fast16(), 5.0, 16))
    plan = decide(Slow(), OneRow(), Fast16(), timings=timings).plan("linear")
    assert [k.name for k in plan] == ["t.one_row", "t.slow", "t.fast16", "t.slow", "t.slow", "t.slow"]


class Fast16(Slow):
    name, priority = "t.fast16", -5

    def why_not(self, problem):
        return None if problem.rows == 16 else "sixteen rows only"


def test_measure_off_ignores_times(monkeypatch):
    timings = timed((Slow(), 1.0, None), (OneRow(), 9.0, 1))
    monkeypatch.setattr("quantry.resolve.timings_of", lambda info: timings)
    chosen = {m: decide(Slow(), OneRow(), policy=Policy(measure=m)).plan("linear")[0].name for m in MODES}
    assert chosen == {"off": "t.one_row", "cached": "t.slow", "on": "t.slow"}


def test_a_kernel_that_failed_in_measurement_is_out():
    timings = timed()
    problem = Problem("linear", affine(), SHAPE, 1, "f32", quantry.registry().device("cpu"))
    timings.disqualify(OneRow(), problem, RuntimeError("misaligned address\nat 0x7f"))
    decision = decide(Slow(), OneRow(), timings=timings)
    assert decision.plan("linear")[0].name == "t.slow"
    assert reasons(decision)["t.one_row"] == "failed in measurement: RuntimeError: misaligned address"


def test_an_override_restricts_and_is_still_filtered():
    with pytest.raises(NoKernelError) as caught:
        decide(Slow(), OneRow(), policy=Policy(only=("t.one_row",)))
    found = dict(caught.value.candidates)
    assert found["t.slow"] == "not in the override t.one_row"
    assert found["t.one_row"] == "one row only"


def test_disabled_by_environment(monkeypatch):
    monkeypatch.setenv("QUANTRY_DISABLE", "t.one_row")
    assert reasons(decide(Slow(), OneRow()))["t.one_row"] == "disabled by QUANTRY_DISABLE"


def test_nothing_left_names_every_candidate_and_what_to_do():
    with pytest.raises(NoKernelError) as caught:
        decide(Slow(), layout=affine(bits=3), tensor="layers.0.up")
    text = str(caught.value)
    assert "layers.0.up" in text
    assert "bits must be 4" in text
    assert "reference='allow'" in text
    assert caught.value.exit_code == 4


def test_reference_runs_anything_where_permitted():
    plan = decide(layout=affine(bits=3), policy=Policy(reference=True)).plan("linear")
    assert {k.name for k in plan} == {"reference"}


@dataclass(frozen=True, slots=True)
class Packing(Dense):
    """A private packing: the same bytes under another family."""

    family = "t_packing"
    storable = False


class ToPacking(Conversion):
    source, target = "dense", "t_packing"

    def target_for(self, layout, shape):
        return Packing(layout.dtype)

    def convert(self, qt, target):
        return QuantizedTensor(target, qt.shape, dict(qt.buffers))


class Back(Conversion):
    source, target = "t_packing", "dense"

    def target_for(self, layout, shape):
        return Dense(layout.dtype)

    def convert(self, qt, target):
        return QuantizedTensor(target, qt.shape, dict(qt.buffers))


class OnPacking(Kernel):
    name, op, family, device, priority, numerics = "t.packed", "linear", "t_packing", "cpu", 7, Numerics()

    def why_not(self, problem):
        return None

    def matmul(self, x, w, layout, shape, bias):
        return x @ w[0].T.to(x.dtype)


class PackingPlugin(Plugin):
    @hookimpl
    def quantry_layouts(self):
        return [Packing]


def test_a_better_packing_is_reached_and_undone_for_saving():
    with installed(PackingPlugin((OnPacking(),), (ToPacking(), Back())), alone=True):
        layer = quantry.QuantLinear(
            QuantizedTensor(Dense("f16"), SHAPE, {"weight": torch.ones(SHAPE).half()})
        )
        y = layer(torch.ones(2, 64))
        assert layer.layout == Packing("f16")
        assert torch.equal(y, torch.full((2, 32), 64.0))
        state = layer.state_dict()
        assert b"dense:f16" in bytes(state["_extra_state"].tolist())


def on_dense(packed_us, dense_us, only=None):
    """The storage chosen for a dense weight, and the reason of the kernel on the other storage."""
    from quantry.torch_kernels import DenseLinear

    with installed(PackingPlugin((OnPacking(),), (ToPacking(), Back())), alone=True):
        timings = timed((OnPacking(), packed_us, only), layout=Packing("f32"))
        info = quantry.registry().device("cpu")
        for count in BUCKETS:
            timings.record(
                DenseLinear(), Problem("linear", Dense("f32"), SHAPE, count, "f32", info), dense_us
            )
        return resolve(Dense("f32"), SHAPE, ("linear",), "f32", "cpu", POLICY, timings=timings)


def test_the_storage_is_the_one_of_least_time_over_all_row_counts():
    kept = on_dense(packed_us=9.0, dense_us=4.0)
    assert kept.storage == Dense("f32")
    assert reasons(kept)["t.packed"] == "slower than torch.linear on dense:f32: 9 against 4 µs"
    assert on_dense(packed_us=3.0, dense_us=4.0).storage == Packing("f32")


def test_times_of_few_row_counts_do_not_choose_the_storage():
    assert on_dense(packed_us=9.0, dense_us=4.0, only=4096).storage == Packing("f32")
    assert on_dense(packed_us=9.0, dense_us=4.0, only=1).storage == Dense("f32")


def test_storage_is_kept_where_asked():
    with (
        installed(PackingPlugin((OnPacking(),), (ToPacking(), Back())), alone=True),
        pytest.raises(NoKernelError),
    ):
        resolve(Dense("f16"), SHAPE, ("linear",), "f32", "cpu", POLICY, keep_storage=True)


def test_a_partial_decision_serves_the_rows_it_can():
    plan = decide(OneRow(), partial=True).plan("linear")
    assert [k and k.name for k in plan] == ["t.one_row"] + [None] * (len(BUCKETS) - 1)


class Doubles(OneRow):
    """A wrong product, so that a test sees who computed it."""

    def matmul(self, x, w, layout, shape, bias):
        return x.new_full((*x.shape[:-1], shape[0]), 2.0)


def test_a_module_runs_the_rows_that_have_a_kernel_and_says_why_it_cannot_run_others():
    layout = affine()
    buffers = {
        n: torch.zeros(s.shape, dtype=quantry.torch_dtype(s.dtype)) for n, s in layout.buffers(SHAPE).items()
    }
    layer = quantry.QuantLinear(QuantizedTensor(layout, SHAPE, buffers))
    with installed(Plugin((Doubles(),)), alone=True):
        assert layer(torch.ones(1, 64)).eq(2).all()
        with pytest.raises(NoKernelError, match="one row only"):
            layer(torch.ones(2, 64))
        with pytest.raises(NoKernelError, match="one row only"):
            layer.prepare()
        shown = quantry.explain(layer.qt, batch=2)["tensors"][0]
        assert (shown["chosen"], shown["error"]) == (None, "no kernel serves 2 rows")
        assert quantry.explain(layer.qt)["tensors"][0]["chosen"] == "t.one_row"

"""Measuring: which kernels are timed, on what, when not, and what the times do to the choice."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import quantry
from quantry import BufferSpec, Kernel, Numerics, Policy, UsageError, WeightUse, hookimpl
from quantry.kernel import BUCKETS
from quantry.sample import sample_buffer
from quantry.testing.installed import installed
from quantry.testing.weights import known_layouts, random_weight

LAYOUT = quantry.GroupedAffine(3, 32, "in", "int", "f16")
SHAPE = (32, 64)


class Clock:
    """Stands still but for what kernels say they took."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Sleeper(Kernel):
    """Takes `work` ns for each weight and row of x, on a clock of its own making."""

    op, family, device, numerics = "linear", "affine", "cpu", Numerics()

    def __init__(self, name, work, clock, priority=0, fails=None):
        self.name, self.work, self.clock, self.priority, self.fails = name, work, clock, priority, fails
        self.seen = []

    def why_not(self, problem):
        return None if problem.layout.bits == 3 else "three bits only"

    def matmul(self, x, w, layout, shape, bias):
        rows = x.numel() // shape[1]
        self.seen.append((shape, rows, w[0].data_ptr()))
        if self.fails is not None and rows >= self.fails:
            raise RuntimeError("misaligned address")
        self.clock.now += self.work * 1e-9 * shape[0] * shape[1] * rows
        return x.new_zeros((*x.shape[:-1], shape[0]))


@dataclass(frozen=True)
class Plugin:
    kernels: tuple

    @hookimpl
    def quantry_kernels(self):
        return self.kernels


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTRY_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("QUANTRY_MEASURE", raising=False)
    monkeypatch.setattr("quantry.timings._known", {})


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pair(clock):
    """A kernel that is tried first and another that is faster."""
    kernels = (Sleeper("t.slow", 3.0, clock, priority=9), Sleeper("t.quick", 1.0, clock))
    with installed(Plugin(kernels), "theirs", alone=True):
        yield kernels


def chosen(qt, **options):
    return quantry.explain(qt, **options)["tensors"][0]


def reason(row, kernel):
    return next(c["reason"] for c in row["candidates"] if c["kernel"] == kernel)


def test_a_faster_kernel_of_a_third_party_wins_and_the_loser_hears_by_how_much(pair, clock):
    qt = random_weight(LAYOUT, SHAPE, 0)
    assert chosen(qt)["chosen"] == "t.slow"
    done = quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock)
    assert (done.timed, done.left) == (len(BUCKETS), 0)
    row = chosen(qt)
    assert row["chosen"] == "t.quick"
    assert reason(row, "t.slow") == "slower than t.quick: 6.14 against 2.05 µs"
    assert [c["time_us"] for c in row["candidates"] if c["chosen"]] == [pytest.approx(2.048)]


def test_what_is_known_is_not_timed_again(pair, clock):
    use = WeightUse(LAYOUT, SHAPE)
    assert quantry.measure([use, use, WeightUse(LAYOUT, SHAPE)], clock=clock).timed == len(BUCKETS)
    calls = [len(k.seen) for k in pair]
    assert quantry.measure([use], clock=clock).timed == 0
    assert [len(k.seen) for k in pair] == calls


def test_one_candidate_is_not_timed(clock):
    alone = Sleeper("t.alone", 1.0, clock)
    with installed(Plugin((alone,)), alone=True):
        assert quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock).timed == 0
    assert not alone.seen


def test_decoding_of_every_weight_is_timed_before_any_prompt(pair, clock):
    shapes = ((32, 64), (64, 64))
    quantry.measure([WeightUse(LAYOUT, shape) for shape in shapes], clock=clock)
    firsts = list(dict.fromkeys((shape, rows) for shape, rows, _ in pair[0].seen))
    assert firsts.index((shapes[1], 16)) < firsts.index((shapes[0], 64))


def test_the_budget_ends_it_and_the_next_call_goes_on(pair, clock):
    uses = [WeightUse(LAYOUT, SHAPE)]
    assert quantry.measure(uses, seconds=0, clock=clock)[:2] == (0, len(BUCKETS))
    first = quantry.measure(uses, seconds=1e-6, clock=clock)
    assert first[:2] == (1, len(BUCKETS) - 1)
    assert quantry.measure(uses, seconds=9, clock=clock)[:2] == (len(BUCKETS) - 1, 0)


def test_one_row_count_can_be_asked_for(pair, clock):
    assert quantry.measure([WeightUse(LAYOUT, SHAPE)], rows=7, clock=clock).timed == 1
    assert {rows for _, rows, _ in pair[0].seen} == {4, 16}  # the try on little work, and the bucket of 7


def test_a_kernel_that_raises_is_disqualified_with_its_error(clock):
    kernels = (
        Sleeper("t.breaks", 0.5, clock, priority=9, fails=16),
        Sleeper("t.quick", 1.0, clock),
        Sleeper("t.slow", 3.0, clock),
    )
    qt = random_weight(LAYOUT, SHAPE, 0)
    with installed(Plugin(kernels), alone=True):
        quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock)
        assert chosen(qt)["chosen"] == "t.breaks"
        row = chosen(qt, batch=16)
    assert row["chosen"] == "t.quick"
    assert reason(row, "t.breaks") == "failed in measurement: RuntimeError: misaligned address"


@pytest.mark.parametrize("rows", [1, 16, 64, 4096])
def test_a_part_stands_for_a_large_weight_and_its_time_is_scaled(pair, clock, rows):
    shape = (65536, 4096)
    quantry.measure([WeightUse(LAYOUT, shape)], rows=rows, seconds=9, clock=clock)
    timings = quantry.timings.timings_of(quantry.registry().device("cpu"))
    bucket = min(b for b in BUCKETS if b >= rows)
    problem = quantry.Problem(
        "linear", LAYOUT, shape, bucket, "f32", quantry.registry().device("cpu"), "strict"
    )
    whole = 1e-3 * shape[0] * shape[1] * bucket
    assert timings.time_us(pair[1], problem) == pytest.approx(whole)
    assert max(s[0] for s, _, _ in pair[1].seen) < shape[0]
    assert max(m for _, m, _ in pair[1].seen) <= 256


def test_copies_take_turns_where_a_model_would_find_its_weight_cold(pair, clock):
    quantry.measure([WeightUse(LAYOUT, (512, 1024))], rows=1, clock=clock)
    places = [place for _, _, place in pair[1].seen][3:]  # after the try
    assert len(set(places)) == len(places) > 2
    pair[1].seen.clear()
    quantry.measure([WeightUse(LAYOUT, (512, 1024))], rows=64, clock=clock)
    assert len({place for _, rows, place in pair[1].seen if rows == 64}) == 1


def test_a_hopeless_kernel_is_not_called_on_much_work(clock):
    kernels = (Sleeper("t.quick", 1e-3, clock), Sleeper("t.glacial", 1e3, clock, priority=9))
    with installed(Plugin(kernels), alone=True):
        quantry.measure([WeightUse(LAYOUT, (4096, 4096))], rows=256, seconds=1e9, clock=clock)
    assert {(shape[0], rows) for shape, rows, _ in kernels[1].seen} == {(256, 4)}


def layer():
    return quantry.QuantLinear(random_weight(LAYOUT, SHAPE, 0))


@pytest.fixture
def ticking(pair, clock, monkeypatch):
    """What modules measure with runs on the kernels' clock."""
    from quantry import measurement

    real = measurement.measure
    monkeypatch.setattr("quantry.nn.packed.measure", lambda uses: real(uses, clock=clock))
    monkeypatch.setattr("quantry.nn.place.measure", lambda uses: real(uses, clock=clock))
    return pair


@pytest.mark.parametrize(("mode", "name"), [("off", "t.slow"), ("cached", "t.slow"), ("on", "t.quick")])
def test_only_on_measures_when_a_model_is_prepared(ticking, mode, name):
    model = torch.nn.Sequential(layer(), layer())
    with quantry.use(measure=mode):
        quantry.prepare(model)
    assert {k.name for m in model for k in m.kernels["linear"]} == {name}
    assert bool(ticking[0].seen) == (mode == "on")


def test_a_layer_prepared_alone_measures_too(ticking, monkeypatch):
    monkeypatch.setenv("QUANTRY_MEASURE", "on")
    one = layer()
    one.prepare()
    assert one.kernels["linear"][0].name == "t.quick"


def test_a_layer_that_ran_already_can_be_measured_later(ticking):
    one = layer()
    one(torch.ones(1, 64))
    with quantry.use(measure="on"):
        one.prepare()
    assert one.kernels["linear"][0].name == "t.quick"


def test_a_call_never_measures(ticking, monkeypatch):
    monkeypatch.setenv("QUANTRY_MEASURE", "on")
    layer()(torch.ones(2, 64))
    quantry.matmul(torch.ones(1, 64), random_weight(LAYOUT, SHAPE, 0))
    assert [[rows for _, rows, _ in k.seen] for k in ticking] == [[2, 1], []]


def test_off_ignores_what_is_known(ticking, clock):
    quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock)
    qt = random_weight(LAYOUT, SHAPE, 0)
    assert chosen(qt)["chosen"] == "t.quick"
    assert chosen(qt, measure="off")["chosen"] == "t.slow"


def test_nothing_is_measured_while_somebody_watches(pair, clock):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        assert quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock).timed == 0
    with torch.profiler.profile():
        assert quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock).timed == 0
    seen = []

    def traced(x):
        seen.append(quantry.measure([WeightUse(LAYOUT, SHAPE)], clock=clock).timed)
        return x + 1

    make_fx(traced)(torch.ones(1))
    torch.func.vmap(traced)(torch.ones(1))
    assert seen == [0, 0]
    assert not pair[0].seen


def test_what_prepares_keeps_the_mode_for_compiled_calls():
    for mode in ("off", "cached", "on"):
        policy = Policy("fast", ("a.b",), measure=mode)
        assert Policy.parse(str(policy)) == policy


def test_an_unknown_mode_names_the_known(monkeypatch):
    with pytest.raises(UsageError, match="off, cached, on"):
        quantry.use(measure="sometimes").__enter__()
    monkeypatch.setenv("QUANTRY_MEASURE", "sometimes")
    with pytest.raises(UsageError, match="off, cached, on"):
        quantry.current_policy()


@pytest.mark.parametrize("read_as", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn"])
def test_made_up_bytes_are_normal_numbers_however_they_are_read(read_as):
    numbers = sample_buffer(BufferSpec("u8", (4, 8192))).view(getattr(torch, read_as))
    facts = torch.finfo(numbers.dtype)
    wide = numbers.double().abs()
    assert wide.isfinite().all()
    assert (wide >= facts.smallest_normal).all()


@pytest.mark.parametrize("name", ["f16", "bf16", "f32"])
def test_made_up_floats_are_moderate(name):
    numbers = sample_buffer(BufferSpec(name, (3, 100))).double()
    assert ((numbers > 0.005) & (numbers < 0.05)).all()


def test_made_up_indices_all_exist():
    perm = sample_buffer(BufferSpec("i32", (2, 70)))
    assert torch.equal(perm.sort(-1).values, torch.arange(70, dtype=torch.int32).expand(2, -1))
    assert sample_buffer(BufferSpec("i32", (0,))).shape == (0,)


@pytest.mark.parametrize("layout", known_layouts("*")[::37], ids=str)
def test_every_layout_has_a_sample_that_fits_it(layout):
    shape = next(s for s in ((64, 1024), (256, 1024), (64, 256), (64,)) if layout.why_not(s) is None)
    assert quantry.QuantizedTensor(layout, shape, layout.sample(shape)).shape == shape

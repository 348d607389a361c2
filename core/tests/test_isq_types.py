"""What a width stands for: kernel times, declared errors and devices decide, and every loser says why."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import quantry
from quantry import GroupedAffine, Kernel, Numerics, Quantizer, UsageError, hookimpl
from quantry.cli import cli
from quantry.isq_types import choose_type, resolve_quantizer
from quantry.kernel import Problem
from quantry.testing.installed import installed
from quantry.timings import timings_of

SHAPE = (4096, 4096)


class Four(Quantizer):
    width = 4

    def __init__(self, name, group, error, priority=0, native=("cpu",)):
        self.name, self.group, self.expected_error = name, group, error
        self.priority, self.native_on = priority, native

    def why_not(self, shape, dtype):
        return None

    def layout_for(self, shape, dtype):
        return GroupedAffine(4, self.group, "in", "int", "f16")

    def quantize(self, weight, layout, stats=None):
        raise NotImplementedError


class Served(Kernel):
    name, op, family, device, numerics = "t.served", "linear", "affine", "cpu", Numerics()

    def why_not(self, problem):
        return "no groups of 16" if problem.layout.group == 16 else None


class Plugin:
    kernel = Served()
    quantizers = (
        Four("rough4", 128, 0.09, priority=3),
        Four("fine4", 64, 0.07),
        Four("finest4", 32, 0.06),
        Four("odd4", 16, 0.01),
        Four("metal4", 256, 0.2, native=("mps",)),
    )

    @hookimpl
    def quantry_kernels(self):
        return [self.kernel]

    @hookimpl
    def quantry_quantizers(self):
        return self.quantizers


@pytest.fixture(autouse=True)
def plugin(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTRY_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("QUANTRY_MEASURE", raising=False)
    monkeypatch.setattr("quantry.timings._known", {})
    with installed(Plugin(), "fours", alone=True):
        yield


def record(**times):
    info = quantry.registry().device("cpu")
    for name, us in times.items():
        q = quantry.registry().quantizers[name]
        problem = Problem("linear", q.layout_for(SHAPE, "bf16"), SHAPE, 1, "f32", info, "strict")
        timings_of(info).record(Plugin.kernel, problem, us)


def reasons(choice):
    return {c.type: c.reason for c in choice.candidates}


def test_of_the_types_that_are_as_fast_the_most_accurate_wins():
    record(rough4=100.0, fine4=120.0, finest4=190.0, metal4=100.0)
    choice = choose_type(4)
    assert choice.chosen.name == "fine4"
    assert reasons(choice) == {
        "fine4": "the most accurate of 3 types that are as fast",
        "finest4": "takes 1.90 times as long as the fastest",
        "rough4": "less accurate or larger: error 0.09 against 0.07 of fine4",
        "metal4": "less accurate or larger: error 0.2 against 0.07 of fine4",
        "odd4": "no installed kernel multiplies by affine:b4,g16,in,int,f16 on cpu",
    }
    assert resolve_quantizer("4") is choice.chosen


def test_without_times_the_plugins_declarations_stand_in():
    choice = choose_type(4)
    assert choice.chosen.name == "rough4"
    assert reasons(choice)["rough4"] == "preferred by its plugin; times are not known"
    assert reasons(choice)["finest4"] == "rough4 has priority 3, this one 0"
    assert reasons(choice)["metal4"] == "rough4 is made for this device"


def test_times_are_not_used_where_the_policy_measures_nothing():
    record(rough4=100.0, fine4=100.0, finest4=100.0, metal4=100.0)
    assert choose_type(4).chosen.name == "finest4"
    with quantry.use(measure="off"):
        assert choose_type(4).chosen.name == "rough4"


def test_a_device_that_is_not_at_hand_gets_the_type_made_for_it():
    choice = choose_type(4, "mps", measure=True)
    assert choice.chosen.name == "metal4"
    assert reasons(choice)["fine4"] == "mps is not at hand; fine4 is made for cpu"


def test_an_unknown_width_names_those_there_are():
    with pytest.raises(UsageError, match="width 3") as e:
        choose_type(3)
    assert e.value.hint == "Widths: 4."


def test_explain_shows_the_candidates():
    found = CliRunner().invoke(cli, ["explain", "--isq", "4", "--no-measure", "--json"])
    document = json.loads(found.stdout)
    assert (document["width"], document["device"], document["chosen"]) == (4, "cpu", "rough4")
    assert [c["chosen"] for c in document["candidates"]] == [True, False, False, False, False]
    shown = CliRunner().invoke(cli, ["explain", "--isq", "4", "--no-measure"])
    assert "rough4 has priority 3, this one 0" in shown.stdout
    assert CliRunner().invoke(cli, ["explain"]).exit_code == 2
    assert CliRunner().invoke(cli, ["explain", "x.gguf", "--isq", "4"]).exit_code == 2

"""Times on disk: damaged files, several writers, conditions, and what is never lost or trusted."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import quantry
from quantry import Problem, UsageError, hookimpl
from quantry.cli import cli
from quantry.kernel import BUCKETS
from quantry.stream import write_safetensors
from quantry.testing.installed import installed
from quantry.timings import Timings, cache_folder, timings_of
from quantry.torch_kernels import DenseLinear

LAYOUT = quantry.Dense("f32")


class Rival(DenseLinear):
    name, version = "t.rival", 3


def cpu():
    return quantry.registry().device("cpu")


def problem(n=64, rows=1):
    return Problem("linear", LAYOUT, (n, 32), rows, "f32", cpu())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTRY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("QUANTRY_MEASURE", raising=False)
    monkeypatch.setattr("quantry.timings._known", {})
    return tmp_path / "cache"


def another_process(monkeypatch):
    """As a process that starts now sees the times."""
    monkeypatch.setattr("quantry.timings._known", {})
    return timings_of(cpu())


def stored() -> Path:
    return next(cache_folder().glob("*.json"))


def test_times_outlive_the_process(monkeypatch):
    here = timings_of(cpu())
    here.record(Rival(), problem(), 12.5)
    here.save()
    assert another_process(monkeypatch).time_us(Rival(), problem()) == 12.5
    document = json.loads(stored().read_text())
    assert document["times_us"] == {"t.rival@3|linear|dense:f32|64x32|1|f32": 12.5}
    assert document["device"]["torch"] == torch.__version__


def test_nothing_is_written_or_made_before_something_is_measured(folder):
    timings_of(cpu()).save()
    quantry.matmul(torch.ones(1, 32), quantry.QuantizedTensor(LAYOUT, (4, 32), {"weight": torch.ones(4, 32)}))
    assert not folder.exists()


def test_a_later_version_of_a_kernel_is_not_known():
    here = timings_of(cpu())
    here.record(DenseLinear(), problem(), 1.0)

    class Next(DenseLinear):
        version = 2

    assert here.time_us(Next(), problem()) is None


DAMAGE = {
    "empty": b"",
    "cut": b'{"schema": 1, "times_us": {"a": 1',
    "no json": b"\xff\xfe\x00",
    "another schema": b'{"schema": 2, "times_us": {}}',
    "a list": b"[1]",
    "no times": b'{"schema": 1}',
    "times a list": b'{"schema": 1, "times_us": [1, 2]}',
    "deep": b"[" * 100_000,
    "a number too large": b'{"schema": 1, "times_us": {"a": 1' + b"0" * 400 + b"}}",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_costs_one_warning_and_is_rewritten(how, monkeypatch):
    here = timings_of(cpu())
    here.record(Rival(), problem(), 3.0)
    here.save()
    stored().write_bytes(DAMAGE[how])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = another_process(monkeypatch)
        assert again.time_us(Rival(), problem()) is None
        again.record(Rival(), problem(), 4.0)
        again.save()
    assert ["cannot be read" in str(w.message) for w in caught] == [True]
    assert another_process(monkeypatch).time_us(Rival(), problem()) == 4.0


def test_entries_that_are_no_times_are_dropped_one_by_one(monkeypatch):
    here = timings_of(cpu())
    here.record(Rival(), problem(), 3.0)
    here.save()
    document = json.loads(stored().read_text())
    key = next(iter(document["times_us"]))
    wrong = {"a": -1, "b": "fast", "c": None, "d": True, "e": float("nan"), "f": 0, "g": [1]}
    document["times_us"] = {**{key + k: v for k, v in wrong.items()}, key: 3.0}
    stored().write_text(json.dumps(document))
    assert another_process(monkeypatch)._times == {key: 3.0}


def test_times_of_kernels_that_are_not_installed_are_kept_and_not_used(monkeypatch):
    here = timings_of(cpu())
    here.record(Rival(), problem(), 0.1)
    here.save()
    again = another_process(monkeypatch)
    qt = quantry.QuantizedTensor(LAYOUT, (64, 32), {"weight": torch.ones(64, 32)})
    shown = quantry.explain(qt)["tensors"][0]
    assert "t.rival" not in {c["kernel"] for c in shown["candidates"]}
    again.record(DenseLinear(), problem(), 1.0)
    again.save()
    assert len(json.loads(stored().read_text())["times_us"]) == 2


WRITER = """
import sys
from pathlib import Path
import quantry
from quantry.timings import Timings
from quantry.torch_kernels import DenseLinear

timings, writer = Timings({}, Path(sys.argv[1])), int(sys.argv[2])
for i in range(10):
    shape = (1 + 10 * writer + i, 32)
    problem = quantry.Problem(
        "linear", quantry.Dense("f32"), shape, 1, "f32", quantry.registry().device("cpu")
    )
    timings.record(DenseLinear(), problem, 1.0 + i)
    timings.save()
"""


def test_writers_do_not_undo_each_other(tmp_path):
    path = tmp_path / "times.json"
    args = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*args, str(i)]) for i in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = Timings({}, path)
    assert all(found.time_us(DenseLinear(), problem(n=n)) is not None for n in range(1, 41))
    assert not list(tmp_path.glob(f"{path.name}.*"))


def test_a_folder_that_cannot_be_written_leaves_times_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTRY_CACHE_DIR", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        here = timings_of(cpu())
        here.record(Rival(), problem(), 5.0)
        here.save()
        here.record(Rival(), problem(), 6.0)
        here.save()
    assert here.time_us(Rival(), problem()) == 6.0
    assert "kept in memory only" in str(caught[-1].message)


def test_times_are_good_for_the_conditions_they_were_taken_under(monkeypatch):
    timings_of(cpu()).record(Rival(), problem(), 5.0)
    monkeypatch.setenv("QUANTRY_CPU_TARGET", "scalar")
    assert timings_of(cpu()).time_us(Rival(), problem()) is None
    monkeypatch.delenv("QUANTRY_CPU_TARGET")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert timings_of(cpu()).time_us(Rival(), problem()) is None
    finally:
        torch.set_num_threads(threads)
    assert timings_of(cpu()).time_us(Rival(), problem()) == 5.0


def test_times_can_be_forgotten(monkeypatch):
    here = timings_of(cpu())
    here.record(Rival(), problem(), 5.0)
    here.save()
    quantry.forget_times()
    assert timings_of(cpu()).time_us(Rival(), problem()) is None
    assert another_process(monkeypatch).time_us(Rival(), problem()) is None
    quantry.forget_times()  # again, with nothing there


def test_what_cannot_be_forgotten_is_said(monkeypatch):
    timings_of(cpu())
    cache_folder().mkdir(parents=True)
    here = timings_of(cpu())
    here.record(Rival(), problem(), 5.0)
    here.save()
    name = stored()
    name.unlink()
    name.mkdir()
    with pytest.raises(UsageError, match="cannot be removed"):
        quantry.forget_times()


class Plugin:
    @hookimpl
    def quantry_kernels(self):
        return [Rival()]


@pytest.fixture
def dense(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"layers.0.up.weight": torch.ones(64, 32)})
    with installed(Plugin(), "theirs", alone=True):
        yield tmp_path / "model.safetensors"


def invoke(*args):
    return CliRunner().invoke(cli, list(args), prog_name="quantry")


def test_explain_shows_times_and_reasons(dense, snapshot):
    here = timings_of(cpu())
    for rows in BUCKETS:
        here.record(DenseLinear(), problem(rows=rows), 812.4)
        here.record(Rival(), problem(rows=rows), 640.0)
    shown = invoke("explain", str(dense)).stdout
    assert "\n".join(line.rstrip() for line in shown.splitlines()[1:]) == snapshot


def test_explain_measures_where_asked_and_only_then(dense):
    plain = json.loads(invoke("explain", str(dense), "--json").stdout)
    assert plain["measured"] is None
    assert {c["time_us"] for c in plain["tensors"][0]["candidates"]} == {None}
    timed = json.loads(invoke("explain", str(dense), "--json", "--measure", "--seconds", "60").stdout)
    assert (timed["measure"], timed["measured"]["timed"], timed["measured"]["left"]) == (
        "on",
        len(BUCKETS),
        0,
    )
    able = [c for c in timed["tensors"][0]["candidates"] if c["ok"]]
    assert all(c["time_us"] > 0 for c in able)
    fastest = min(able, key=lambda c: c["time_us"])
    near = {c["kernel"] for c in able if c["time_us"] <= 1.05 * fastest["time_us"]}
    # times within 5 % are one, and then the kernel of the layout's own plugin comes first
    assert timed["tensors"][0]["chosen"] == ("torch.linear" if "torch.linear" in near else fastest["kernel"])
    off = json.loads(invoke("explain", str(dense), "--json", "--no-measure").stdout)
    assert {c["time_us"] for c in off["tensors"][0]["candidates"]} == {None}


def test_explain_says_what_the_budget_left_and_forgets(dense):
    done = invoke("explain", str(dense), "--measure", "--seconds", "0")
    assert f"{len(BUCKETS)} problems were not timed" in done.stderr
    timings_of(cpu()).record(Rival(), problem(), 5.0)
    timings_of(cpu()).save()
    assert invoke("explain", str(dense), "--forget").exit_code == 0
    assert not list(cache_folder().glob("*.json"))

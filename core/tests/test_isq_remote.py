"""Work handed to other processes: equal bytes in any order, and refusals where machines differ."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import platform

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from quantry import Executor, PluginError, QuantryError, UsageError, ValueDomainError, hookimpl
from quantry.checkpoint import open_checkpoint
from quantry.cli import cli
from quantry.isq import Weights, quantize_checkpoint
from quantry.isq_run import _batches, tasks_of
from quantry.stream import StreamWriter
from quantry.testing.installed import installed

UP = "model.layers.0.mlp.up_proj.weight"
TYPES = ["toy32", "toy128", "f16"]  # by rows, whole matrices, without a change of bytes


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def tensors():
    held = {f"model.layers.{i}.mlp.up_proj.weight": noise(96, 128, seed=i) for i in range(3)}
    held |= {f"model.layers.{i}.mlp.up_proj.bias": noise(96, seed=i) for i in range(3)}
    for expert in range(3):
        held[f"model.layers.3.mlp.experts.{expert}.up_proj.weight"] = noise(32, 128, seed=expert)
    held["model.layers.4.mlp.experts.gate_up_proj"] = noise(3, 64, 128)
    held["model.layers.4.mlp.experts.down_proj"] = noise(3, 128, 32)
    return held | {"model.norm.weight": noise(128)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model cut into blocks of eight rows, batches of two blocks."""
    monkeypatch.setattr("quantry.isq_run._BLOCK_BYTES", 8 * 4 * 128)
    monkeypatch.setattr("quantry.isq_run._BATCH_BYTES", 2 * 8 * 4 * 128)
    monkeypatch.setattr("quantry.isq_run._BATCHES", 1)
    source = tmp_path / "hf"
    source.mkdir()
    save_file(tensors(), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return source


class Beside(Executor):
    """Does the work in this process, but knows of it only what can be pickled."""

    name = "beside"

    def __init__(self):
        self.calls, self.batches, self.change = [], [], {}
        self.twice, self.fails_at = False, None

    @contextlib.contextmanager
    def connect(self, address=None, jobs=None):
        self.calls.append((address, jobs))
        yield self

    def run(self, work, batches, done):
        sent = pickle.dumps(dataclasses.replace(work, **self.change))
        work = pickle.loads(sent)  # noqa: S301 - our own bytes
        opened = work.open()
        self.batches += batches
        for i, batch in enumerate(reversed(batches)):
            if i == self.fails_at:
                raise QuantryError("the cluster is gone")
            if self.twice:
                opened.do(batch.tasks)  # by a worker that died before it could tell
            done(opened.do(batch.tasks))
        opened.close()


@pytest.fixture
def beside(toys):
    executor = Beside()

    class Plugin:
        @staticmethod
        @hookimpl
        def quantry_executors():
            return [executor]

    with installed(Plugin(), "beside"):
        yield executor


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def remote(folder, out="out", types=TYPES, **options):
    return quantize_checkpoint(folder, folder.parent / out, types, executor="beside", **options)


@pytest.mark.parametrize("twice", [False, True])
def test_batches_in_any_order_and_done_again_give_the_bytes_of_a_local_run(folder, beside, twice):
    beside.twice = twice
    quantize_checkpoint(folder, folder.parent / "whole", TYPES)
    told = []
    remote(folder, jobs=3, address="somewhere", progress=lambda *now: told.append(now))
    assert content(folder.parent / "out") == content(folder.parent / "whole")
    assert beside.calls == [("somewhere", 3)]
    assert told[-1][0] == told[-1][1]
    assert len(beside.batches) > 3 * len(TYPES)
    assert {p.name for p in folder.parent.iterdir()} == {"hf", "out", "whole"}


def test_batches_are_neighbours_of_bounded_size_and_cover_the_plan(folder, beside):
    (plan,) = quantize_checkpoint(folder, folder.parent / "x.uqff", "toy32", dry_run=True).plans
    tasks = list(tasks_of(plan))
    batches = _batches(tasks)
    assert [n for batch in batches for n in batch.tasks] == list(range(len(tasks)))
    sizes = [sum(tasks[n].source_bytes for n in batch.tasks) for batch in batches]
    assert all(
        size <= 2 * 8 * 4 * 128 or len(batch.tasks) == 1 for size, batch in zip(sizes, batches, strict=True)
    )
    assert max(len(batch.tasks) for batch in batches) > 1
    assert batches[0].tensor == UP
    assert all(batch.memory_bytes >= tasks[batch.tasks[0]].cost for batch in batches)


def test_weights_that_the_type_cannot_hold_are_named_as_in_a_local_run(folder, beside):
    held = tensors()
    held[UP][41, 7] = float("nan")
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ValueDomainError) as here:
        quantize_checkpoint(folder, folder.parent / "out", "toy32")
    with pytest.raises(ValueDomainError, match="row 41, column 7") as there:
        remote(folder)
    assert (str(there.value), there.value.tensor) == (str(here.value), UP)
    assert not (folder.parent / "out").exists()
    assert remote(folder, types="toy32", nan_policy="zero").replaced == {UP: 1}


def test_importance_and_pins_travel(folder, beside):
    from quantry.isq_plan import Selection

    selection = Selection.of(exclude=["layers.2"], topology={"1": "toy128"})
    options = {"importance": {UP: torch.rand(128)}, "selection": selection}
    quantize_checkpoint(folder, folder.parent / "whole", "toy32", **options)
    remote(folder, types="toy32", **options)
    assert content(folder.parent / "out") == content(folder.parent / "whole")


def test_a_failure_of_the_executor_leaves_the_folder_as_it_was(folder, beside):
    remote(folder, types="f16")
    older = content(folder.parent / "out")
    beside.fails_at = 5
    with pytest.raises(QuantryError, match="the cluster is gone"):
        remote(folder)
    assert content(folder.parent / "out") == older


def test_a_worker_with_other_versions_names_them_and_its_machine(folder, beside):
    beside.change = {"versions": {"quantry": "9.0", "quantry-absent": "1.2", "dist-of-toys": "0"}}
    with pytest.raises(PluginError) as e:
        remote(folder)
    assert e.value.problem.startswith(platform.node())
    assert "instead of 9.0" in e.value.problem
    assert "quantry-absent missing instead of 1.2" in e.value.problem
    assert "toys" not in e.value.problem


def test_a_worker_that_plans_otherwise_refuses(folder, beside):
    beside.change = {"digest": "0"}
    with pytest.raises(UsageError, match="makes another plan"):
        remote(folder)


@pytest.mark.parametrize("field", ["model", "payload"])
def test_a_worker_that_does_not_see_the_files_names_them_and_its_machine(folder, beside, field):
    beside.change = {field: folder.parent / "elsewhere"}
    with pytest.raises(UsageError, match="does not see it") as e:
        remote(folder)
    assert e.value.file == str(folder.parent / "elsewhere")
    assert e.value.problem.startswith(platform.node())


def test_each_worker_holds_the_bound_of_memory(folder, beside):
    with pytest.raises(UsageError, match="MB to be packed") as e:
        remote(folder, max_memory=1 << 20)
    assert e.value.tensor.endswith(".weight")


def test_weights_in_memory_cannot_be_handed_out(folder, beside):
    ckpt = open_checkpoint(folder)
    weights = Weights([(UP, ckpt.load(UP))])
    with pytest.raises(UsageError, match="open the model by its path"):
        quantize_checkpoint(weights, folder.parent / "out", "toy32", executor="beside")


def test_a_missing_executor_says_what_to_install(folder, toys):
    done = CliRunner().invoke(
        cli, ["quantize", str(folder), "--isq", "toy32", "-o", str(folder.parent / "x.uqff"), "--ray"]
    )
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 6
    assert "no executor 'ray' is installed" in done.stderr
    assert 'pip install "quantry[ray]"' in done.stderr
    assert done.stdout == ""
    assert not (folder.parent / "x-0.uqff").exists()


def test_a_joined_file_stays_when_its_guest_leaves(tmp_path):
    from quantry import BufferSpec

    specs = {"a": BufferSpec("u8", (4,)), "b": BufferSpec("u8", (2,))}
    host = StreamWriter(tmp_path / "x", specs, resume=True)
    guest = StreamWriter(tmp_path / "x", specs, join=True)
    guest.write("a", b"1234")
    guest.close()
    StreamWriter(tmp_path / "x", specs, join=True).abort()
    host.mark("a", 0, 4)
    host.write("b", b"56")
    host.close()
    whole = StreamWriter(tmp_path / "y", specs)
    whole.write("a", b"1234")
    whole.write("b", b"56")
    whole.close()
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_file_of_another_plan_is_not_joined(tmp_path):
    from quantry import BufferSpec

    host = StreamWriter(tmp_path / "x", {"a": BufferSpec("u8", (4,))}, resume=True)
    with pytest.raises(UsageError, match="are planned"):
        StreamWriter(tmp_path / "x", {"a": BufferSpec("u8", (8,))}, join=True)
    with pytest.raises(QuantryError, match="cannot be written"):
        StreamWriter(tmp_path / "y", {"a": BufferSpec("u8", (8,))}, join=True)
    host.abort()

"""A cluster of two cores writes what this process alone does, whatever dies on the way."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantry import QuantryError, UsageError, ValueDomainError
from quantry.isq import quantize_checkpoint
from quantry.testing import PluginSuite

UP = "model.layers.1.mlp.up_proj.weight"


class TestPlugin(PluginSuite):
    name = "ray"


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def alone(model, types):
    quantize_checkpoint(model, model.parent / "alone", types)
    return content(model.parent / "alone")


def on_ray(model, types, **options):
    return quantize_checkpoint(model, model.parent / "out", types, executor="ray", **options)


def test_the_bytes_are_those_of_a_local_run(cluster, model):
    types = ["q4k", "afq4", "hqq4"]
    told = []
    done = on_ray(model, types, progress=lambda *now: told.append(now))
    assert content(done.folder) == alone(model, types)
    assert told[-1][0] == told[-1][1]
    assert {p.name for p in model.parent.iterdir()} == {"alone", "hf", "out"}


def test_a_cluster_for_a_run_leaves_nothing_at_home(cluster):
    assert list(cluster.home.iterdir()) == []


def test_importance_travels_to_the_workers(cluster, model):
    importance = {UP: torch.linspace(0.1, 3, 256)}
    done = on_ray(model, "q4k", importance=importance)
    weighed = content(done.folder)
    quantize_checkpoint(model, model.parent / "alone", "q4k", importance=importance)
    assert weighed == content(model.parent / "alone")
    quantize_checkpoint(model, model.parent / "plain", "q4k")
    assert weighed["q4k-0.uqff"] != (model.parent / "plain" / "q4k-0.uqff").read_bytes()


def test_a_worker_killed_on_the_way_costs_nothing_but_its_batch(cluster, model, caplog):
    expected = alone(model, "mortal")
    kill = cluster.order("kill")
    with caplog.at_level(logging.WARNING, "quantry_ray"):
        done = on_ray(model, "mortal")
    assert not kill.exists()
    assert [r.getMessage() for r in caplog.records if "a worker died" in r.getMessage()]
    assert content(done.folder) == expected


def test_a_nan_is_named_as_in_a_local_run(cluster, model):
    held = load_file(model / "model.safetensors")
    held[UP][211, 17] = float("nan")
    save_file(held, model / "model.safetensors")
    with pytest.raises(ValueDomainError) as there:
        on_ray(model, "q4k", jobs=1)
    with pytest.raises(ValueDomainError) as here:
        quantize_checkpoint(model, model.parent / "alone", "q4k")
    assert there.value.tensor == UP
    assert "row 211, column 17" in there.value.problem
    assert str(there.value) == str(here.value)
    assert {p.name for p in model.parent.iterdir()} == {"hf"}
    assert on_ray(model, "q4k", nan_policy="zero").replaced == {UP: 1}


def test_jobs_bound_the_workers(cluster, model):
    on_ray(model, "mortal", jobs=1)
    turns = [pid for pid, _ in itertools.groupby((cluster.orders / "names").read_text().split())]
    assert len(turns) == len(set(turns))


def test_work_for_which_no_machine_has_memory_is_refused(cluster, model, monkeypatch):
    monkeypatch.setattr("quantry_ray.executor._WORKER_BYTES", 1 << 60)
    with pytest.raises(UsageError, match="on one machine") as e:
        on_ray(model, "f16")
    assert e.value.tensor.endswith(".weight")


def test_the_bound_of_memory_holds_for_each_worker(cluster, model):
    with pytest.raises(UsageError, match="MB to be packed") as e:
        on_ray(model, "f16", max_memory=50_000_000)
    assert "--max-memory" in e.value.hint


def test_another_cluster_than_the_connected_one_is_refused(cluster, model):
    with pytest.raises(UsageError, match="is connected to the Ray cluster at"):
        on_ray(model, "f16", address="head:6379")


@pytest.mark.peer
def test_a_batch_that_kills_every_worker_is_named(cluster, model, monkeypatch):
    monkeypatch.setattr("quantry_ray.executor._TRIES", 2)
    older = content(on_ray(model, "f16").folder)
    cluster.order("always")
    with pytest.raises(QuantryError, match="2 workers died") as e:
        on_ray(model, "mortal", jobs=1)
    assert e.value.tensor.endswith(".weight")
    assert "--max-memory" in e.value.hint
    assert content(model.parent / "out") == older
    assert {p.name for p in model.parent.iterdir()} == {"hf", "out"}


def driver(code, *args):
    """Another process of this machine, a driver of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_CLI = """
from quantry import isq_journal
from quantry.cli import main
isq_journal._SECONDS = 0.01
main()
"""


def quantize(model, cluster, out="out"):
    args = ["--isq", "mortal", "-o", model.parent / out, "--ray", cluster.address, "--jobs", "1", "--json"]
    return driver(_CLI, "quantize", model, *args)


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def notes(model):
    """What the journal of a run that goes on has."""
    return [p for p in model.parent.glob(".quantry-*.tmp/notes") if p.stat().st_size]


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.peer
@pytest.mark.slow
def test_a_killed_driver_is_continued_by_the_same_command_though_a_worker_dies_too(cluster, model):
    expected = alone(model, "mortal")
    cluster.order("names")
    wait = cluster.order("wait", "3")
    first = quantize(model, cluster)
    until(lambda: notes(model))
    assert first.poll() is None
    first.kill()
    first.communicate()
    orphans = {int(pid) for pid in (cluster.orders / "names").read_text().split()}
    until(lambda: not any(map(lives, orphans)))  # Ray ends workers of drivers that died
    wait.unlink()
    kill = cluster.order("kill")
    second = quantize(model, cluster)
    said, complaints = second.communicate()
    assert second.returncode == 0
    assert "a worker died at" in complaints
    assert not kill.exists()
    assert json.loads(said)["resumed"]
    assert content(model.parent / "out") == expected
    assert {p.name for p in model.parent.iterdir()} == {"alone", "hf", "out"}


@pytest.mark.peer
def test_an_interrupted_driver_leaves_nothing(cluster, model):
    cluster.order("wait", "0")
    process = quantize(model, cluster)
    until(lambda: list(model.parent.glob(".quantry-*.tmp/payload/*.part")))
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate()
    assert (process.returncode, said, complaints.strip()) == (130, "", "")
    assert {p.name for p in model.parent.iterdir()} == {"hf"}


_OLD = """
import sys, ray
from quantry.cli.failure import guarded
from quantry_ray.cluster import connected
ray.__version__ = "1.2.3"
guarded(lambda: connected(sys.argv[1]).__enter__())
"""


@pytest.mark.peer
def test_a_cluster_of_another_version_is_named_with_both(cluster, model):
    process = driver(_OLD, cluster.address)
    said, complaints = process.communicate()
    assert process.returncode == 6
    assert said == ""
    assert "is of another version" in complaints
    assert "Ray: 1.2.3" in complaints
    assert "Traceback" not in complaints

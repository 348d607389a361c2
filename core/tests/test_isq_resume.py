"""A killed ISQ run leaves the old output or none, and is continued by the next; memory bounds; NaN policy."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

import quantry
from quantry import UsageError, ValueDomainError
from quantry.isq import quantize_checkpoint

_RUN = """
import os, sys
from quantry import isq_journal, isq_run
from quantry.isq import quantize_checkpoint
isq_journal._SECONDS, isq_run._BLOCK_BYTES = 0.005, 16 << 10
source, out, at, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
calls = 0
def tick(*told):
    global calls
    calls += 1
    if calls == 1:
        print("begun", flush=True)
    if calls == at:
        os.kill(os.getpid(), 9)
done = quantize_checkpoint(source, out, ["bf16", "f16"], jobs=jobs, progress=tick)
print(done.resumed, calls, flush=True)
"""


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    held = {f"model.layers.{i}.mlp.up_proj.weight": noise(300, 128, seed=i) for i in range(6)}
    held |= {f"model.layers.{i}.mlp.up_proj.bias": noise(300, seed=i) for i in range(6)}
    save_file(held | {"model.norm.weight": noise(128)}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return source


def start(folder, at=0, jobs=2):
    command = [sys.executable, "-c", _RUN, str(folder), str(folder.parent / "out"), str(at), str(jobs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(process):
    """Exit status and what it printed."""
    said = process.communicate()[0]
    return process.returncode, said


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def whole(folder):
    """What an undisturbed run writes."""
    quantize_checkpoint(folder, folder.parent / "whole", ["bf16", "f16"])
    return content(folder.parent / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("at", "jobs"), [(1, 1), (9, 3), (17, 1)])
def test_a_killed_run_is_continued_with_the_same_bytes(folder, whole, at, jobs):
    assert ended(start(folder, at, jobs)) == (-9, "begun\n")
    out = folder.parent / "out"
    assert not out.exists()
    assert ended(start(folder))[1].startswith("begun\nTrue ")
    assert content(out) == whole
    assert {p.name for p in folder.parent.iterdir()} == {"hf", "out", "whole"}


@pytest.mark.slow
def test_kills_at_random_moments_never_break_the_output(folder, whole):
    rng = random.Random(11)
    out = folder.parent / "out"
    quantize_checkpoint(folder, out, "f32")  # an older output, of another type
    older = content(out)
    for _ in range(4):
        process = start(folder, jobs=rng.choice([1, 2]))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.random() * 0.15)
        process.kill()
        process.communicate()
        found = content_of_files(out)
        # the older set as it was, or the new one beside the older shards, never a mixture of half files
        assert found.items() >= older.items() or found.items() >= whole.items()
        if found.items() >= older.items():
            assert quantry.verify(out / "f32-0.uqff") == []
    assert ended(start(folder))[0] == 0
    assert content_of_files(out).items() >= whole.items()


def content_of_files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.mark.slow
def test_another_plan_starts_anew(folder, whole):
    assert ended(start(folder, 9))[0] == -9
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "x": 1}))
    assert "False" in ended(start(folder))[1]
    assert {p.name for p in folder.parent.iterdir()} == {"hf", "out", "whole"}


def test_a_bound_that_no_tensor_fits_is_refused_before_work(folder):
    with pytest.raises(UsageError, match="MB to be packed") as e:
        quantize_checkpoint(folder, folder.parent / "x.uqff", "bf16", max_memory=1 << 20)
    assert e.value.tensor.endswith("up_proj.weight")
    least = e.value.hint.split()[1]
    assert least.endswith("MB")
    generous = (int(least.removesuffix("MB")) + 100) * 10**6
    quantize_checkpoint(folder, folder.parent / "x.uqff", "bf16", max_memory=generous)
    assert {p.name for p in folder.parent.iterdir() if p.name.startswith(".")} == set()


def test_nan_can_be_zeroed_and_is_counted(folder):
    held = {"model.layers.0.mlp.up_proj.weight": noise(300, 128)}
    for row, value in ((7, "nan"), (8, "inf"), (299, "-inf")):
        held["model.layers.0.mlp.up_proj.weight"][row, 3] = float(value)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ValueDomainError, match="row 7, column 3"):
        quantize_checkpoint(folder, folder.parent / "x.uqff", "bf16")
    done = quantize_checkpoint(folder, folder.parent / "x.uqff", "bf16", nan_policy="zero")
    assert done.replaced == {"model.layers.0.mlp.up_proj.weight": 3}
    found = quantry.open(folder.parent / "x-0.uqff")["model.layers.0.mlp.up_proj.weight"].dequantize()
    assert found[[7, 8, 299], 3].tolist() == [0, 0, 0]
    with pytest.raises(UsageError, match="NaN policy"):
        quantize_checkpoint(folder, folder.parent / "y.uqff", "bf16", nan_policy="ignore")

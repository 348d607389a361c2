"""Writing UQFF into a folder: stale files go, failures and kills leave the folder as it was."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch
from toys import packed, tensors

from quantry import QuantryError, ShapeError, UsageError, save_uqff

pytestmark = pytest.mark.usefixtures("toys")

CONFIG = {"model_type": "llama"}


@pytest.fixture
def saved(tmp_path):
    save_uqff(tmp_path / "x.uqff", tensors(), config=CONFIG, files={"tokenizer.json": b"{}"})
    return tmp_path


def test_a_second_write_replaces_the_old_shards(tmp_path):
    save_uqff(tmp_path / "x.uqff", tensors(), shard_bytes=400)
    (tmp_path / "x-7.uqff").write_bytes(b"stale")
    (tmp_path / "y-0.uqff").write_bytes(b"other")
    save_uqff(tmp_path / "x.uqff", tensors())
    assert {p.name for p in tmp_path.glob("*.uqff")} == {"x-0.uqff", "y-0.uqff"}


def test_a_failed_write_leaves_the_folder_as_it_was(saved):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(UsageError):
        save_uqff(saved / "x.uqff", {"a.weight": packed(), "b": packed()})
    with pytest.raises(UsageError):
        save_uqff(saved / "x.uqff", {"a.weight": packed()}, {"nobody": torch.ones(2)})
    with pytest.raises(ShapeError):
        save_uqff(saved / "x.uqff", {"a.weight": packed()}, {"a": torch.ones(3)})
    with pytest.raises(UsageError):
        save_uqff(saved / "x.uqff", {"a.weight": packed()}, config={"x": object()})
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_failed_move_rolls_back(saved, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    real, calls = pathlib.Path.replace, []

    def failing(self, target):
        calls.append(self)
        if len(calls) == 8:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", failing)
    with pytest.raises(QuantryError, match="Input/output"):
        save_uqff(saved / "x.uqff", {"a.weight": packed()}, config={}, files={"new.txt": b"x"})
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


_KILLED = """
import sys, os, pathlib, torch, quantry
from quantry.uqff_write import save_uqff
real, calls = pathlib.Path.replace, 0
def killing(self, target):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    return real(self, target)
pathlib.Path.replace = killing
target = pathlib.Path(sys.argv[1]) / "x.uqff"
save_uqff(target, {"a.weight": torch.ones(3, 3)}, config={}, files={"new.txt": b"x"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_what_a_killed_process_leaves_is_undone_by_the_next_writer(tmp_path, at):
    save_uqff(tmp_path / "x.uqff", tensors(), config=CONFIG)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), str(at)], check=False)
    assert any(p.name.startswith(".quantry-") for p in tmp_path.iterdir())
    with pytest.raises(UsageError):  # it fails, after it has cleaned up
        save_uqff(tmp_path / "x.uqff", {}, config={"x": object()})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

"""`quantry.verify`: sound checkpoints have no problem, each fault has one, and nothing else is raised."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantry
from quantry import UsageError, save_uqff
from quantry.isq import quantize_checkpoint

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    save_file({"a.weight": torch.ones(4, 64), "b.weight": torch.ones(4, 20)}, source / "model.safetensors")
    (source / "config.json").write_text('{"model_type": "llama"}')
    quantize_checkpoint(source, tmp_path / "out" / "x.uqff", "toy64")
    return tmp_path / "out"


def found(path, strict=False):
    return {(p.file, p.tensor): p.problem for p in quantry.verify(path, strict)}


def rewrite(path, change):
    held = {name: t.clone() for name, t in load_file(path).items()}
    change(held)
    save_file(held, path)


def report_of(folder, change):
    path = folder / "uqff_report.json"
    report = json.loads(path.read_text())
    change(report["outputs"][0])
    path.write_text(json.dumps(report))


def test_sound_checkpoints_have_no_problem(folder):
    assert found(folder) == {}
    assert found(folder / "x-0.uqff") == {}
    assert found(folder.parent / "hf", strict=True) == {}
    assert found(folder.parent / "hf" / "model.safetensors") == {}


def test_nothing_to_verify_is_an_error_and_nothing_known_a_problem(tmp_path):
    with pytest.raises(UsageError):
        quantry.verify(tmp_path / "no")
    (tmp_path / "x.txt").write_text("x")
    assert list(found(tmp_path).values()) == ["no installed format recognises it"]


def test_strict_names_fallbacks(folder):
    assert found(folder, strict=True) == {("x-0.uqff", ""): "1 layers fell back to unquant"}


def test_strict_names_what_is_missing_beside_the_shards(folder):
    rewrite(folder / "x-0.uqff", lambda held: None)  # without metadata
    for name in ("uqff_report.json", "residual.safetensors", "config.json"):
        (folder / name).unlink()
    assert found(folder) == {}
    assert found(folder, strict=True).keys() >= {
        ("x-0.uqff", ""),
        ("uqff_report.json", ""),
        ("residual.safetensors", ""),
        ("config.json", ""),
    }


def test_every_faulty_layer_is_listed(folder):
    def spoil(held):
        del held["a.weight.scales"]
        held["b.weight.format"] = torch.tensor(9, dtype=torch.uint8)

    rewrite(folder / "x-0.uqff", spoil)
    problems = found(folder)
    assert "missing" in problems["x-0.uqff", "a.weight"]
    assert "tag 9" in problems["x-0.uqff", "b.weight"]


@pytest.mark.parametrize(
    ("change", "module"),
    [
        (lambda o: o["layer_details"].pop(), "b"),
        (lambda o: o["layer_details"].append({"module": "c", "stored": "toy64", "shape": [1]}), "c"),
        (lambda o: o["layer_details"][0].update(stored="q4k"), "a"),
        (lambda o: o["layer_details"][0].update(shape=[1, 2]), "a"),
    ],
)
def test_a_report_that_disagrees_is_a_problem(folder, change, module):
    report_of(folder, change)
    assert found(folder).keys() == {("uqff_report.json", module)}


def test_gaps_in_the_shards_are_problems(tmp_path):
    weights = {f"{c}.weight": quantry.quantize(torch.ones(4, 64), "toy64") for c in "abc"}
    paths = save_uqff(tmp_path / "x.uqff", weights, shard_bytes=300)
    paths[1].unlink()
    assert ["is missing" in problem for problem in found(tmp_path).values()] == [True]
    (tmp_path / "uqff_report.json").unlink()
    assert ["x-1.uqff is missing" in problem for problem in found(tmp_path).values()] == [True]


def test_each_output_of_a_folder_is_checked(folder):
    quantize_checkpoint(folder.parent / "hf", folder.parent / "two", ["toy64", "toy32"])
    two = folder.parent / "two"
    assert found(two) == {}
    (two / "toy32-0.uqff").write_bytes(b"")
    assert found(two).keys() == {("toy32-0.uqff", "")}


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_truncated_files_are_problems(folder, cut):
    for path in (
        folder / "x-0.uqff",
        folder / "residual.safetensors",
        folder.parent / "hf" / "model.safetensors",
    ):
        content = path.read_bytes()
        path.write_bytes(content[:cut])
        assert path.name in {file for file, _ in found(path.parent)}
        path.write_bytes(content)


def test_missing_plugins_are_problems(folder):
    config = {"quantization_config": {"quant_method": "gptq"}}
    (folder.parent / "hf" / "config.json").write_text(json.dumps(config))
    (problem,) = found(folder.parent / "hf").values()
    assert "gptq" in problem

"""What `quantry verify` finds in a UQFF output, fault by fault; strict reads the numbers too."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import packed, tensors

import quantry
from quantry import save_uqff

pytestmark = pytest.mark.usefixtures("toys")

KEY = "model.layers.2.mlp.up_proj"


@pytest.fixture
def saved(tmp_path):
    save_uqff(tmp_path / "x.uqff", tensors(), config={})
    return tmp_path


def found(path, strict=False):
    return {(p.file, p.tensor): p.problem for p in quantry.verify(path, strict)}


def edit(path, change):
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    held = {name: t.clone() for name, t in load_file(path).items()}
    save_file(change(held) or held, path, metadata)


def with_nan(name):
    def change(held):
        held[name].view(-1)[1] = float("nan")

    return change


def test_a_sound_output_has_no_problem(saved):
    assert found(saved) == found(saved, strict=True) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 3}, "the report counts 3 layers, the shards hold 4"),
        ({"actual_counts": {"toy32": 4}}, "stored are {'toy32': 3, 'unquant': 1}"),
    ],
)
def test_counts_that_disagree_are_problems(saved, change, words):
    path = saved / "uqff_report.json"
    report = json.loads(path.read_text())
    report["outputs"][0] |= change
    path.write_text(json.dumps(report))
    assert words in found(saved)["uqff_report.json", ""]


@pytest.mark.parametrize(
    "change", [{"layers": "4"}, {"actual_counts": [1]}, {"actual_counts": {"toy32": "3"}}]
)
def test_counts_of_another_kind_make_the_report_malformed(saved, change):
    path = saved / "uqff_report.json"
    report = json.loads(path.read_text())
    report["outputs"][0] |= change
    path.write_text(json.dumps(report))
    assert "malformed" in found(saved)["uqff_report.json", ""]


def test_a_shard_that_the_report_does_not_list_is_a_problem(saved):
    (saved / "x-1.uqff").write_bytes((saved / "x-0.uqff").read_bytes())
    assert found(saved / "x-0.uqff") == {("x-1.uqff", ""): "is a shard that the report does not list"}


@pytest.mark.parametrize("name", [f"{KEY}.weight.scales", f"{KEY}.bias", "model.embed_tokens.weight"])
def test_numbers_that_are_not_finite_are_found_by_strict_only(saved, name):
    edit(saved / "x-0.uqff", with_nan(name))
    assert found(saved) == {}
    assert found(saved, strict=True) == {("x-0.uqff", name.removesuffix(".scales")): "holds NaN or Inf"}


def test_numbers_are_read_in_runs_of_rows(saved, monkeypatch):
    monkeypatch.setattr("quantry.uqff_verify._RUN_WEIGHTS", 64)
    edit(saved / "x-0.uqff", with_nan("lm_head.weight.scales"))
    assert found(saved, strict=True) == {("x-0.uqff", "lm_head.weight"): "holds NaN or Inf"}


def test_a_layer_split_over_shards_is_whole_only_with_all_of_them(tmp_path):
    paths = save_uqff(
        tmp_path / "x.uqff", {"a.weight": packed(), "b.weight": packed()}, config={}, shard_bytes=270
    )
    files = [{name.partition(".")[0] for name in load_file(path)} for path in paths]
    assert sum("b" in keys for keys in files) > 1
    assert found(tmp_path) == {}
    last = next(path for path in paths if "b.weight.scales" in load_file(path))
    edit(last, lambda held: {n: t for n, t in held.items() if n != "b.weight.scales"})
    assert "missing" in next(p.problem for p in quantry.verify(tmp_path) if p.tensor == "b.weight")


def test_a_name_in_two_shards_and_a_gap_in_their_numbers_are_problems(tmp_path):
    held = {f"{c}.weight": packed() for c in "abc"}
    paths = save_uqff(tmp_path / "x.uqff", held, config={}, shard_bytes=300)
    (tmp_path / "uqff_report.json").unlink()
    edit(paths[-1], lambda held: held | {"a.weight": torch.ones(1)})
    assert found(tmp_path) == {(paths[-1].name, "a.weight"): f"occurs in {paths[0].name} too"}
    paths[1].rename(tmp_path / "x-9.uqff")
    assert found(tmp_path) == {("x-1.uqff", ""): "shard x-1.uqff is missing"}


@pytest.mark.parametrize("lie", [torch.tensor([1], dtype=torch.uint32), torch.tensor(1)])
def test_versions_that_are_no_u32_scalars_are_problems(saved, lie):
    edit(saved / "x-0.uqff", lambda held: held | {"uqff.version.minor": lie})
    assert "must be a u32 scalar" in found(saved)["x-0.uqff", "uqff.version.minor"]

"""Importance: values that are none are refused by name, files are found by kind, names by weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import quantry
from quantry import FormatError, Importance, ShapeError, UsageError, ValueDomainError
from quantry.cli import cli
from quantry.importance_files import SafetensorsImportance, importance_by_weight
from quantry.testing import ImportanceFormatSuite, sample_importance


class TestSafetensors(ImportanceFormatSuite):
    format = SafetensorsImportance()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_no_importance_is_named_with_its_column(value):
    values = torch.ones(2, 8)
    values[1, 3] = value
    with pytest.raises(ValueDomainError, match="expert 1, column 3") as e:
        Importance({"w": values})
    assert e.value.tensor == "w"


@pytest.mark.parametrize("values", [torch.ones(2, 2, 2), torch.tensor(1.0), torch.ones(4, dtype=torch.int32)])
def test_what_is_no_vector_of_floats_is_named(values):
    with pytest.raises(ShapeError) as e:
        Importance({"w": values})
    assert e.value.tensor == "w"


def test_a_file_is_written_in_the_format_of_its_ending(tmp_path):
    path = tmp_path / "i.safetensors"
    quantry.write_importance(path, sample_importance())
    for name, values in load_file(path).items():
        assert np.array_equal(values.numpy(), sample_importance().weights[name].numpy())
    assert list(quantry.read_importance(path).weights) == sorted(sample_importance().weights)


def test_unknown_endings_and_files_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"ends in '\.xyz'") as e:
        quantry.write_importance(tmp_path / "i.xyz", sample_importance())
    assert ".safetensors" in e.value.hint
    with pytest.raises(UsageError, match="cannot be read") as e:
        quantry.read_importance(tmp_path / "none.safetensors")
    assert e.value.file == str(tmp_path / "none.safetensors")
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(UsageError, match="no importance file"):
        quantry.read_importance(tmp_path / "words.txt")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "i.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(FormatError) as e:
        quantry.read_importance(path)
    assert e.value.file == str(path)


def test_names_are_found_with_and_without_weight():
    values = torch.ones(4)
    found = importance_by_weight({"a.weight": values, "b": values}, {"a.weight", "b.weight"})
    assert sorted(found) == ["a.weight", "b.weight"]


def test_importance_of_another_model_names_the_weight():
    with pytest.raises(UsageError, match="no such weight") as e:
        importance_by_weight({"c": torch.ones(4)}, {"a.weight"})
    assert e.value.tensor == "c"


def test_a_model_in_place_refuses_importance_it_has_no_weight_for():
    model = torch.nn.Sequential(torch.nn.Linear(32, 4))
    with pytest.raises(UsageError, match="no such weight") as e:
        quantry.quantize_model(model, "f16", importance={"1": torch.ones(32)})
    assert e.value.tensor == "1"
    assert isinstance(model[0], torch.nn.Linear)


def test_a_stack_of_experts_may_be_given_as_one_vector():
    from quantry.isq_checks import importance_of

    quantizer = quantry.registry().quantizers["f32"]
    flat = torch.arange(6.0)
    found = importance_of({"e": flat}, quantizer, "e", (3, 5, 2))
    assert found is not None
    assert found.tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UsageError, match="importance has shape"):
        importance_of({"e": flat}, quantizer, "e", (2, 5, 2))


def test_a_type_that_importance_does_not_touch_is_said(tmp_path):
    (tmp_path / "hf").mkdir()
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.randn(4, 32)}, tmp_path / "hf" / "model.safetensors")
    quantry.write_importance(tmp_path / "i.safetensors", Importance({name: torch.ones(32)}))
    args = ["quantize", str(tmp_path / "hf"), "-o", str(tmp_path / "out"), "--isq", "f16"]
    done = CliRunner().invoke(cli, [*args, "--imatrix", str(tmp_path / "i.safetensors")])
    assert done.exit_code == 0, done.stderr
    assert "importance changes nothing for f16" in done.stderr
    assert "note:" not in done.stdout

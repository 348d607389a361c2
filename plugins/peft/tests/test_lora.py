"""Folders of LoRA as peft writes them, and ones that lie or ask for more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantry
from quantry import FormatError, HeaderError, ShapeError, UsageError, ValueDomainError
from quantry_peft.config import CONFIG
from quantry_peft.lora import PICKLED, WEIGHTS

FIXTURES = Path(__file__).with_name("fixtures")
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
TABLE = "base_model.model.model.embed_tokens.lora_embedding_"


@pytest.mark.parametrize("name", ["plain", "patterns"])
def test_changes_equal_those_that_peft_computed(name):
    """peft multiplies b·a in float32 and scales then: K products of rank r and two more roundings."""
    adapter = quantry.read_adapter(FIXTURES / name)
    golden = load_file(FIXTURES / name / "changes.safetensors")
    assert adapter.parts.keys() == golden.keys()
    for weight, part in adapter.parts.items():
        found = part.scale * part.b.double() @ part.a.double()
        bound = (part.rank + 2) * 2**-24 * part.scale * part.b.double().abs() @ part.a.double().abs()
        assert ((found - golden[weight]).abs() <= bound).all(), weight
    assert (adapter.convention, adapter.architecture, adapter.scale) == (None, None, 1.0)


def test_ranks_follow_the_pattern():
    parts = quantry.read_adapter(FIXTURES / "patterns").parts
    ranks = {name: part.rank for name, part in parts.items()}
    assert ranks["model.layers.1.self_attn.v_proj.weight"] == 2
    assert ranks["model.layers.0.self_attn.q_proj.weight"] == 3
    assert ranks["model.layers.0.self_attn.v_proj.weight"] == 4


@pytest.fixture
def folder(tmp_path):
    """folder(config changes, edit): a copy of one of the golden folders, changed."""

    def make(edit=lambda tensors: None, base="plain", **changes):
        target = tmp_path / "lora"
        shutil.copytree(FIXTURES / base, target)
        fields = json.loads((target / CONFIG).read_text())
        (target / CONFIG).write_text(json.dumps({**fields, **changes}))
        tensors = load_file(target / WEIGHTS)
        edit(tensors)
        save_file(tensors, target / WEIGHTS)
        return target

    return make


def test_names_may_carry_the_adapters_name(folder):
    def rename(tensors):
        for name in list(tensors):
            stem, dot, leaf = name.rpartition(".weight") if name.endswith(".weight") else (name, "", "")
            if "base_layer" not in name:
                tensors[f"{stem}.default{dot}{leaf}"] = tensors.pop(name)

    found = quantry.read_adapter(folder(rename, "patterns")).parts
    expected = quantry.read_adapter(FIXTURES / "patterns").parts
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n].a, expected[n].a) for n in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_keep_the_type_they_are_stored_in(folder, dtype):
    def narrow(tensors):
        tensors.update({name: t.to(dtype) for name, t in tensors.items()})

    assert {p.a.dtype for p in quantry.read_adapter(folder(narrow)).parts.values()} == {dtype}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": None}, "None"),
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"alora_invocation_tokens": [5]}, "activated"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"bias": "all"}, "'all'"),
        ({"lora_bias": True}, "lora_B"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"option_of_tomorrow": 3}, "option_of_tomorrow"),
    ],
)
def test_what_matrices_alone_do_not_say_is_refused_by_name(folder, changes, said):
    with pytest.raises(UsageError) as e:
        quantry.read_adapter(folder(**changes))
    assert said in e.value.problem
    assert e.value.file.endswith(CONFIG)


def test_unknown_options_that_are_not_set_do_not_matter(folder):
    quantry.read_adapter(folder(option_of_tomorrow=None, another=False, third={}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": [4]}, "rank_pattern is [4]"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern['q_proj'] is -1"),
        ({"alpha_pattern": {"q_(": 4}}, "'q_('"),
        ({"rank_pattern": {"(.+)+x": 4}}, "repeats a group"),
    ],
)
def test_numbers_that_are_none_are_named(folder, changes, said):
    with pytest.raises(HeaderError) as e:
        quantry.read_adapter(folder(**changes))
    assert said in e.value.problem


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"r": 1', "nul", "\ud800".encode("utf-8", "replace").decode()]
)
def test_a_config_that_is_no_object_is_named(folder, text):
    path = folder()
    (path / CONFIG).write_text(text)
    with pytest.raises((HeaderError, UsageError)) as e:
        quantry.read_adapter(path)
    assert e.value.file == str(path / CONFIG)


def test_bytes_that_are_no_text_are_named(folder):
    path = folder()
    (path / CONFIG).write_bytes(b"\xff\xfe{")
    with pytest.raises(HeaderError) as e:
        quantry.read_adapter(path)
    assert e.value.file == str(path / CONFIG)


def _set(name, value):
    return lambda tensors: tensors.update({name: value(tensors[name])})


def _filled(number):
    return lambda t: torch.full_like(t, number)


@pytest.mark.parametrize(
    ("edit", "error", "tensor", "said"),
    [
        (lambda t: t.pop(Q + "B.weight"), FormatError, Q + "B.weight", "missing"),
        (lambda t: t.pop(Q + "A.weight"), FormatError, Q + "A.weight", "missing"),
        (_set(Q + "A.weight", lambda a: a[:3].clone()), ShapeError, Q + "B.weight", "share no rank"),
        (_set(Q + "A.weight", lambda a: a[0].clone()), FormatError, Q + "A.weight", "not a matrix"),
        (_set(Q + "B.weight", lambda b: b.to(torch.int8)), FormatError, Q + "B.weight", "int8"),
        (_set(Q + "B.weight", _filled(torch.nan)), ValueDomainError, Q + "B.weight", "NaN"),
        (_set(Q + "A.weight", _filled(-torch.inf)), ValueDomainError, Q + "A.weight", "Inf"),
        (lambda t: t.update({Q[:-5] + "lora_magnitude_vector": torch.ones(8)}), UsageError, None, "DoRA"),
        (lambda t: t.update({Q + "B.bias": torch.ones(16)}), UsageError, Q + "B.bias", "biases"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(16)}),
            FormatError,
            "model.norm.weight",
            "lora_A",
        ),
        (lambda t: t.update({Q + "A.other.weight": torch.ones(4, 16)}), FormatError, None, "also there"),
        (lambda t: t.clear(), FormatError, None, "no weight"),
    ],
)
def test_a_folder_that_lies_is_named_with_its_tensor(folder, edit, error, tensor, said):
    with pytest.raises(error) as e:
        quantry.read_adapter(folder(edit))
    assert said in e.value.problem
    assert e.value.file.endswith(WEIGHTS)
    assert tensor is None or e.value.tensor == tensor


def test_a_missing_half_of_an_embedding_is_named(folder):
    with pytest.raises(FormatError) as e:
        quantry.read_adapter(folder(lambda t: t.pop(TABLE + "A"), "patterns"))
    assert e.value.tensor == TABLE + "A"


def test_both_halves_of_another_rank_than_the_config_says_are_named(folder):
    def cut(tensors):
        tensors[Q + "A.weight"] = tensors[Q + "A.weight"][:2].clone()
        tensors[Q + "B.weight"] = tensors[Q + "B.weight"][:, :2].clone()

    with pytest.raises(ShapeError) as e:
        quantry.read_adapter(folder(cut))
    assert e.value.tensor == Q + "A.weight"
    assert "rank 2" in e.value.problem
    assert "says 4" in e.value.problem


def test_a_whole_weight_of_a_module_without_change_is_refused(folder):
    name = "base_model.model.model.norm.base_layer.weight"
    with pytest.raises(UsageError) as e:
        quantry.read_adapter(folder(lambda t: t.update({name: torch.ones(16)})))
    assert e.value.tensor == name


@pytest.mark.parametrize("size", [0, 7, 40, 4000])
def test_a_cut_file_is_named(folder, size):
    path = folder()
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[:size])
    with pytest.raises(FormatError) as e:
        quantry.read_adapter(path)
    assert e.value.file == str(path / WEIGHTS)


def test_pickled_weights_are_never_read(folder):
    path = folder()
    (path / WEIGHTS).rename(path / PICKLED)
    with pytest.raises(UsageError) as e:
        quantry.read_adapter(path)
    assert PICKLED in e.value.problem
    assert "save_pretrained" in e.value.hint


def test_a_folder_without_weights_is_named(folder):
    path = folder()
    (path / WEIGHTS).unlink()
    with pytest.raises(FormatError, match=r"holds no adapter_model\.safetensors"):
        quantry.read_adapter(path)


def test_a_folder_of_something_else_is_declined_with_the_reason(tmp_path):
    with pytest.raises(UsageError) as e:
        quantry.read_adapter(tmp_path)
    assert "peft: holds no adapter_config.json" in e.value.hint

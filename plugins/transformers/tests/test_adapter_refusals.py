"""Adapters that are made for another model: errors with file and tensor, before any weight is loaded."""

from __future__ import annotations

import pytest
import torch

import quantry
from quantry import PluginError, ShapeError, UsageError, hookimpl
from quantry.testing.installed import installed

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def made(tiny):
    return tiny("gemma3")


def refused(made, path, error=UsageError):
    with pytest.raises(error) as e:
        quantry.load_model(made.path, adapter=path)
    assert e.value.file == str(path)
    return e.value


def test_another_architecture_is_named(made, lora, tmp_path):
    path = lora(made).gguf(tmp_path / "lora", arch="llama")
    assert "'llama', the model is 'gemma3'" in refused(made, path).problem


def test_the_first_weight_that_the_model_lacks_is_named(made, lora, tmp_path):
    change = lora(made, only="mlp")
    change.halves = {
        UP: change.halves[UP],
        "model.layers.7.mlp.up_proj.weight": change.halves[UP],
        "model.layers.7.mlp.gate_proj.weight": change.halves[UP],
    }
    assert refused(made, change.gguf(tmp_path / "lora")).tensor == "blk.7.ffn_up.weight"
    assert refused(made, change.peft(tmp_path / "folder")).tensor.startswith("model.layers.7.mlp.")


@pytest.mark.parametrize(
    "name", ["model.norm", "model.layers.0.mlp", "model.layers", "transformer.h.0.x", "x"]
)
def test_what_is_no_matrix_of_the_model_is_named(made, lora, tmp_path, name):
    change = lora(made)
    change.halves = {f"{name}.weight": change.halves[UP]}
    assert refused(made, change.peft(tmp_path / "lora")).tensor == f"{name}.weight"


@pytest.mark.parametrize("form", ["gguf", "peft"])
def test_another_shape_is_named_with_the_models(made, lora, tmp_path, form):
    change = lora(made)
    change.halves[UP] = torch.ones(4, 65), torch.ones(128, 4)
    error = refused(made, getattr(change, form)(tmp_path / "lora"), ShapeError)
    assert error.tensor == (UP if form == "peft" else "blk.0.ffn_up.weight")
    assert "[128, 65]" in error.problem
    assert "[128, 64]" in error.problem


def test_an_adapter_of_an_embedding_with_more_tokens_is_named(made, lora, tmp_path):
    change = lora(made, only="embed")
    change.halves["model.embed_tokens.weight"] = torch.ones(4, 64), torch.ones(97, 4)
    error = refused(made, change.peft(tmp_path / "lora"), ShapeError)
    assert "[97, 64]" in error.problem
    assert "[96, 64]" in error.problem


def test_gguf_names_need_a_model_that_gguf_has_names_for(hf_folder, lora, made, tmp_path):
    import transformers

    config = transformers.GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=1, n_head=4)
    hf_folder(tmp_path / "hf", config)
    path = lora(made).gguf(tmp_path / "lora")
    with pytest.raises(UsageError, match="'gpt2'"):
        quantry.load_model(tmp_path / "hf", adapter=path)


def test_names_of_an_unknown_convention_are_refused(made, tmp_path):
    class Foreign(quantry.AdapterFormat):
        name = "foreign"

        def why_not(self, path):
            return None

        def read(self, path):
            part = quantry.LowRank(torch.ones(1, 64), torch.ones(128, 1), 1.0)
            return quantry.Adapter(path, {"up": part}, "theirs")

    class Plugin:
        @hookimpl
        def quantry_adapter_formats(self):
            return [Foreign()]

    path = tmp_path / "x.foreign"
    path.touch()
    with installed(Plugin()):
        assert "'theirs'" in refused(made, path).problem


def test_without_a_plugin_that_reads_adapters_what_to_install_is_said(tmp_path):
    class Nothing:
        pass

    with installed(Nothing(), alone=True), pytest.raises(PluginError, match="quantry-peft"):
        quantry.read_adapter(tmp_path)


def test_a_model_is_no_adapter(made):
    error = refused(made, made.path)
    assert "not an adapter" in error.problem

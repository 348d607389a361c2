"""GGUF's name of each weight, known from headers, is what the `gguf` package calls the model's parameter."""

from __future__ import annotations

import json

import gguf
import pytest
import torch
import transformers
from safetensors.torch import save_file

import quantry
from quantry_transformers.architectures import ARCHITECTURES
from quantry_transformers.gguf_names import gguf_names

LAYER = "model.layers.0"


def other_names(checkpoint):
    (runtime,) = (r for r in quantry.registry().runtimes if "gguf" in r.conventions)
    return runtime.other_names(checkpoint, "gguf")


@pytest.fixture
def folder(tmp_path):
    """folder(model_type, {name: shape}): a checkpoint of zeros."""

    def make(kind, shapes):
        save_file(
            {name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors"
        )
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        return quantry.open(tmp_path)

    return make


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_names_of_a_folder_and_of_a_file_are_those_of_the_gguf_package(tiny, model_folder, arch):
    made = tiny(arch, "F32")
    kind = "LLAMA" if arch == "mistral" else arch.upper()
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind], made.model.config.num_hidden_layers)
    expected = {}
    for name, _ in made.model.named_parameters():
        stem, _, leaf = name.rpartition(".")
        expected[f"{table.get_name(stem)}.{leaf}"] = name
    if made.model.config.tie_word_embeddings:
        expected["output.weight"] = "model.embed_tokens.weight"
    assert other_names(quantry.open(model_folder(made.model))) == expected
    assert other_names(quantry.open(made.path)) == expected


def test_the_embedding_of_a_tied_model_is_found_under_its_own_name(tiny):
    """Turned round, the mapping names it token_embd, not output."""
    names = other_names(quantry.open(tiny("gemma3").path))
    turned = {weight: name for name, weight in names.items()}
    assert turned["model.embed_tokens.weight"] == "token_embd.weight"


@pytest.mark.parametrize(
    ("kind", "stored", "weight"),
    [
        ("qwen3_moe", "mlp.experts.{e}.gate_proj.weight", "mlp.experts.gate_proj.weight"),
        ("qwen2_moe", "mlp.experts.{e}.up_proj.weight", "mlp.experts.up_proj.weight"),
        (
            "mixtral",
            "block_sparse_moe.experts.{e}.w2.weight",
            "block_sparse_moe.experts.down_proj.weight",
        ),
        ("mixtral", "block_sparse_moe.experts.{e}.w3.weight", "block_sparse_moe.experts.up_proj.weight"),
    ],
)
def test_experts_stored_apart_are_one_stack(folder, kind, stored, weight):
    found = other_names(folder(kind, {f"{LAYER}.{stored.format(e=e)}": (4, 8) for e in range(3)}))
    part = weight.split(".")[-2].removesuffix("_proj")
    assert found == {f"blk.0.ffn_{part}_exps.weight": f"{LAYER}.{weight}"}


@pytest.mark.parametrize("leaf", ["", ".weight"])
def test_a_fused_stack_is_gate_and_up(folder, leaf):
    stem = f"{LAYER}.mlp.experts"
    shapes = {f"{stem}.gate_up_proj{leaf}": (3, 8, 16), f"{stem}.down_proj{leaf}": (3, 16, 4)}
    assert other_names(folder("qwen3_moe", shapes)) == {
        f"blk.0.ffn_{part}_exps.weight": f"{stem}.{part}_proj.weight" for part in ("gate", "up", "down")
    }


def test_stacks_apart_keep_their_names(folder):
    """As UQFF has them."""
    names = {f"{LAYER}.mlp.experts.{part}_proj.weight": (3, 4, 4) for part in ("gate", "up", "down")}
    found = other_names(folder("qwen2_moe", names))
    assert sorted(found.values()) == sorted(names)


def test_shared_experts_and_routers(folder):
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2MOE, 1)
    modules = [
        "mlp.gate",
        "mlp.shared_expert_gate",
        *(f"mlp.shared_expert.{p}_proj" for p in ("gate", "up", "down")),
    ]
    found = other_names(folder("qwen2_moe", {f"{LAYER}.{m}.weight": (4, 8) for m in modules}))
    assert found == {f"{table.get_name(f'{LAYER}.{m}')}.weight": f"{LAYER}.{m}.weight" for m in modules}


def test_no_data_is_read(tiny, model_folder, monkeypatch):
    checkpoint = quantry.open(model_folder(tiny("llama", "F32").model))
    monkeypatch.setattr(quantry.Checkpoint, "load", lambda *_: pytest.fail("read"))
    assert "blk.1.ffn_down.weight" in gguf_names(checkpoint)


def test_what_gguf_does_not_know_has_no_names(folder):
    assert other_names(folder("bloom", {"word_embeddings.weight": (4, 8)})) == {}
    (runtime,) = (r for r in quantry.registry().runtimes if "gguf" in r.conventions)
    assert runtime.other_names(folder("llama", {"lm_head.weight": (4, 8)}), "onnx") == {}


def test_every_model_type_is_one_of_transformers():
    from quantry_transformers.gguf_models import GGUF_MODELS

    for kind, row in GGUF_MODELS.items():
        config = transformers.AutoConfig.for_model(kind)
        assert transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__ == row.arch.model_class
        assert row.arch.gguf in gguf.MODEL_ARCH_NAMES.values()

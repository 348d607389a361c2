"""Folders that no GGUF file can be made of: the first tensor or field that is wrong is named."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import quantry
from quantry_transformers.gguf_state import gguf_state

QWEN3_MOE = transformers.Qwen3MoeConfig(
    vocab_size=96, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, intermediate_size=96, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
    norm_topk_prob=True,
)  # fmt: skip


def edited(folder, edit):
    """The folder's tensors, changed, opened again."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
    return quantry.open(folder)


LAYER = "model.layers.1"


@pytest.mark.parametrize(
    ("edit", "named", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.mlp.up_proj.weight"), f"{LAYER}.mlp.up_proj.weight", "is missing"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight", "is missing"),
        (lambda t: t.update({"score.weight": torch.zeros(2, 64)}), "score.weight", "no place for it"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)}),
            "model.layers.2.mlp.up_proj.weight",
            "states 2 layers",
        ),
        (
            lambda t: t.update({f"{LAYER}.mlp.up_proj.bias": torch.zeros(128)}),
            f"{LAYER}.mlp.up_proj.bias",
            "has no such parameter",
        ),
        (
            lambda t: t.update({f"{LAYER}.mlp.up_proj.weight": torch.zeros(64, 128)}),
            f"{LAYER}.mlp.up_proj.weight",
            r"has shape \[64, 128\], LlamaForCausalLM needs \[128, 64\]",
        ),
    ],
)
def test_tensors_too_many_or_too_few_are_named(tiny, model_folder, edit, named, said):
    folder = model_folder(tiny("llama", "F32").model)
    with pytest.raises(quantry.FormatError, match=said) as caught:
        gguf_state(edited(folder, edit))
    assert caught.value.tensor == named


def test_what_old_checkpoints_store_and_tied_heads_are_left_out(tiny, model_folder):
    folder = model_folder(tiny("qwen2", "F32").model)  # its head is the embedding
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": torch.ones(96, 64),
    }
    names = [e.name for e in gguf_state(edited(folder, lambda t: t.update(extra))).weights.entries()]
    assert "output.weight" not in names
    assert names[0] == "token_embd.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.2.up_proj.weight"), "expert 2 is missing"),
        (
            lambda t: t.update({"model.layers.0.mlp.experts.1.down_proj.weight": torch.zeros(64, 8)}),
            r"expert 0 is dense:f32 \[64, 32\]",
        ),
    ],
)
def test_experts_that_make_no_stack_are_named(model_folder, edit, said):
    folder = model_folder(transformers.AutoModelForCausalLM.from_config(QWEN3_MOE))
    with pytest.raises(quantry.FormatError, match=said):
        gguf_state(edited(folder, edit))


def test_heads_that_llama_cpp_has_otherwise_are_refused(tiny, model_folder):
    made = tiny("gemma2", "F32", tie_word_embeddings=False)
    with pytest.raises(quantry.UsageError, match="tie_word_embeddings is False"):
        gguf_state(quantry.open(model_folder(made.model)))


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "num_key_value_heads"])
def test_a_configuration_that_the_shapes_contradict_is_refused(tiny, model_folder, key):
    folder = model_folder(tiny("llama", "F32").model)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: 4 * config[key]}))
    with pytest.raises(quantry.FormatError, match="LlamaForCausalLM needs"):
        gguf_state(quantry.open(folder))

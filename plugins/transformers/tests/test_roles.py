"""ISQ takes what a model's modules say is a layer, whatever its tensors are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import quantry
from quantry_transformers.model_roles import roles_of

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NEOX = transformers.GPTNeoXConfig(**SIZES, intermediate_size=128)
OPT = transformers.OPTConfig(**SIZES, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=32)
GPT2 = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=32)
MOE = transformers.Qwen3MoeConfig(
    **SIZES, num_key_value_heads=2, head_dim=16, moe_intermediate_size=32, num_experts=4,
    intermediate_size=64, num_experts_per_tok=2, decoder_sparse_step=1,
)  # fmt: skip


def saved(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "layers", "dense"),
    [
        (
            NEOX,
            {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "embed_in", "embed_out"},
            set(),
        ),
        (OPT, {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "embed_tokens"}, {"embed_positions"}),
        # GPT-2 multiplies by transposed matrices in a class of its own
        (GPT2, {"wte"}, {"wpe", "c_attn", "c_proj", "c_fc"}),
    ],
    ids=["neox", "opt", "gpt2"],
)
def test_layers_are_found_from_the_model(
    config: Any, layers: set[str], dense: set[str], tmp_path: Path
) -> None:
    from quantry.isq import quantize_checkpoint

    source = saved(config, tmp_path / "hf")
    done = quantize_checkpoint(source, tmp_path / "out" / "x.uqff", "f16")
    found = {layer.module.rpartition(".")[2] for layer in done.outputs[0].layers}
    assert found == layers
    rest = {name.removesuffix(".weight").rpartition(".")[2] for name in done.plans[0].residual}
    assert dense <= rest


def test_routers_and_experts_of_a_mixture_keep_their_parts(tmp_path: Path) -> None:
    checkpoint = quantry.open(saved(MOE, tmp_path))
    roles = roles_of(checkpoint)
    by_leaf = {name.removesuffix(".weight").rpartition(".")[2]: role for name, role in roles.items()}
    assert by_leaf["q_proj"] == "linear"
    assert by_leaf["gate"] == "router"
    assert by_leaf["q_norm"] == "other"
    assert by_leaf["lm_head"] == "head"


def test_a_model_that_transformers_does_not_know_is_judged_by_names(tmp_path: Path) -> None:
    saved(OPT, tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"opt"', '"unheard_of"')
    (tmp_path / "config.json").write_text(config)
    assert roles_of(quantry.open(tmp_path)) == {}

"""Configurations as GGUF key-values; what llama.cpp would compute otherwise is refused by field."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import transformers

import quantry
from quantry_transformers.gguf_metadata import architecture_keys
from quantry_transformers.gguf_models import GGUF_MODELS, gguf_model

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7}


def keys(kind, **fields):
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **fields})
    return architecture_keys(config, GGUF_MODELS[kind], "config.json")


@pytest.mark.parametrize("kind", sorted(GGUF_MODELS))
def test_every_key_is_one_that_the_gguf_package_knows(kind):
    known = {
        value.format(arch=GGUF_MODELS[kind].arch.gguf)
        for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for value in vars(group).values()
        if isinstance(value, str) and "{arch}" in value and "{dense}" not in value
    }
    fields = {"norm_topk_prob": True} if kind == "qwen3_moe" else {}
    fields |= GEMMA if kind.startswith("gemma") else {}
    found, _ = keys(kind, **fields)
    assert set(found) <= known


def test_numbers_have_the_types_that_llama_cpp_reads():
    """u32 for whole numbers, f32 for others: an integer theta is a float."""
    found, _ = keys("llama", rope_parameters={"rope_type": "default", "rope_theta": 10000})
    assert {key: type(value) for key, value in found.items() if not isinstance(value, int)} == {
        "llama.attention.layer_norm_rms_epsilon": float,
        "llama.rope.freq_base": float,
    }


def test_mixtures_state_their_experts():
    found, _ = keys("qwen2_moe", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=40)
    assert found["qwen2moe.expert_count"] == 6
    assert found["qwen2moe.expert_used_count"] == 3
    assert found["qwen2moe.expert_feed_forward_length"] == 40
    assert found["qwen2moe.expert_shared_feed_forward_length"] == 5632
    found, _ = keys("mixtral", num_local_experts=5)
    assert found["llama.expert_count"] == 5


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def test_llama3_factors_divide_the_frequencies_as_transformers_does():
    config = transformers.LlamaConfig(
        **{**SMALL, "max_position_embeddings": 65536}, head_dim=64, rope_parameters=LLAMA3
    )
    found, tensors = architecture_keys(config, GGUF_MODELS["llama"], "x")
    assert "llama.rope.scaling.type" not in found
    theirs, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    factors = tensors["rope_freqs.weight"]
    assert factors.dtype == np.float32
    assert torch.allclose(plain / torch.from_numpy(factors), theirs, rtol=1e-6, atol=0)


def test_linear_and_yarn_scaling():
    found, _ = keys("qwen2", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    assert found["qwen2.rope.scaling.type"] == "linear"
    assert found["qwen2.rope.scaling.factor"] == 4.0
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
    found, _ = keys("qwen3", rope_parameters=yarn)
    scaling = {key.split("scaling.")[1]: value for key, value in found.items() if "scaling" in key}
    assert scaling == {"type": "yarn", "factor": 4.0, "original_context_length": 64}


def test_a_stated_attention_factor_is_relative_to_yarns_own():
    """llama.cpp multiplies 1 + 0.1 ln(factor) by it (src/llama-context.cpp)."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
    found, _ = keys("qwen3", rope_parameters={**yarn, "attention_factor": 1.5, "beta_fast": 16.0})
    assert found["qwen3.rope.scaling.attn_factor"] == pytest.approx(1.5 / (1 + 0.1 * math.log(4)))
    assert found["qwen3.rope.scaling.yarn_beta_fast"] == 16.0
    found, _ = keys("qwen3", rope_parameters={**yarn, "attention_factor": 1 + 0.1 * math.log(4)})
    assert "qwen3.rope.scaling.attn_factor" not in found


def test_longrope_of_phi3():
    short, long = [1.0 + 0.1 * i for i in range(6)], [2.0 + i for i in range(6)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    sizes = {**SMALL, "max_position_embeddings": 4096, "original_max_position_embeddings": 256}
    config = transformers.Phi3Config(
        **sizes, pad_token_id=0, rope_parameters={**rope, "short_factor": short, "long_factor": long}
    )
    found, tensors = architecture_keys(config, GGUF_MODELS["phi3"], "x")
    assert found["phi3.rope.dimension_count"] == 12
    assert found["phi3.rope.scaling.original_context_length"] == 256
    _, attention = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["longrope"](config, "cpu")
    assert found["phi3.rope.scaling.attn_factor"] == pytest.approx(attention)
    assert np.allclose(tensors["rope_factors_long.weight"], long)
    assert np.allclose(tensors["rope_factors_short.weight"], short)


def test_gemma3_states_both_bases_and_scales_the_global_one():
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    found, _ = keys("gemma3_text", rope_parameters=rope, **GEMMA)
    assert found["gemma3.rope.freq_base"] == 1e6
    assert found["gemma3.rope.freq_base_swa"] == 2e4
    assert found["gemma3.rope.scaling.factor"] == 8.0
    assert "gemma3.attention.sliding_window_pattern" not in found


def test_layers_that_slide_in_another_order_are_listed():
    kinds = ["full_attention", *["sliding_attention"] * 6]
    found, _ = keys("gemma3_text", layer_types=kinds, **GEMMA)
    pattern = found["gemma3.attention.sliding_window_pattern"]
    assert pattern.dtype == np.bool_
    assert pattern.tolist() == [False, *[True] * 6]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "'dynamic'",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "8 of each head's 16",
        ),
        ("qwen3", {"rope_parameters": LLAMA3, "max_position_embeddings": 65536}, "'llama3'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window is True"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
        ("gemma2", {**GEMMA, "query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping is not set"),
        ("gemma3_text", {**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
        ("gemma3_text", {**GEMMA, "hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ("qwen3", {"rms_norm_eps": math.inf}, "rms_norm_eps is inf"),
    ],
)
def test_what_llama_cpp_takes_for_granted_must_be_so(kind, fields, said):
    with pytest.raises(quantry.UsageError, match=said) as caught:
        keys(kind, **fields)
    assert caught.value.file == "config.json"
    assert repr(GGUF_MODELS[kind].arch.gguf) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({}, "no model_type"),
        ({"model_type": ["llama"]}, "llama"),
        ({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}, "code that a folder brings along"),
        ({"model_type": "gemma3", "text_config": {}}, "saved alone"),
    ],
)
def test_models_of_other_types_are_refused_with_the_known_ones(config, said):
    with pytest.raises(quantry.UsageError, match=said) as caught:
        gguf_model(config, "config.json")
    assert all(kind in str(caught.value) for kind in GGUF_MODELS)

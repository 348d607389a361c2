"""llama.cpp runs what a folder is exported as: its logits are the model's own, for every model type."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers

import quantry
from quantry_transformers.gguf_state import gguf_state

llama_cpp = pytest.importorskip("llama_cpp", reason="`make peers` builds llama-cpp-python")
pytestmark = pytest.mark.peer("llama_cpp")

EPS = torch.finfo(torch.float32).eps
GELU_TABLE = 2.0**-11  # ggml looks GELU up in float16 (ggml-cpu/vec.h, GGML_GELU_FP16)
IDS = list(range(3, 60))
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
LOCAL = {"rope_type": "default", "rope_theta": 2e4}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip
VARIANTS = [
    *((arch, {}) for arch in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")),
    ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 32, "attention_bias": True}),
    ("qwen2", {"rope_parameters": YARN}),
    ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.5}}),
    # llama.cpp takes the long factors where its context, 256 here, is longer than the original one
    ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256,
              "max_position_embeddings": 1024}),
    ("gemma3", {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL}}),
    ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 6]}),
    ("gemma2", {"layer_types": [*["full_attention"] * 2, *["sliding_attention"] * 2]}),
]  # fmt: skip
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip
MIXTURES = [
    transformers.Qwen2MoeConfig(
        **SIZES, moe_intermediate_size=32, shared_expert_intermediate_size=96, num_experts=4
    ),
    transformers.Qwen3MoeConfig(
        **SIZES, head_dim=32, moe_intermediate_size=32, num_experts=4, norm_topk_prob=True
    ),
    transformers.MixtralConfig(**SIZES, num_local_experts=4),
]


def assert_equal_logits(model, folder, path, write_exported):
    write_exported(gguf_state(quantry.open(folder)), path)
    options = {"n_ctx": 256, "type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    peer = llama_cpp.Llama(str(path), logits_all=True, n_threads=1, verbose=False, **options)
    peer.eval(IDS)
    found = torch.from_numpy(np.array(peer.scores[: len(IDS)]))
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([IDS])).logits[0]
    config = model.config
    # the same float32 products summed in another order, four matrices deep a layer
    bound = 4 * config.num_hidden_layers * config.intermediate_size * EPS
    if config.model_type.startswith("gemma"):
        bound = config.num_hidden_layers * GELU_TABLE
    assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(
    ("arch", "changes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v)
)
def test_logits_are_the_models(tiny, model_folder, write_exported, tmp_path, arch, changes):
    model = tiny(arch, "F32", **changes).model
    assert_equal_logits(model, model_folder(model), tmp_path / "x.gguf", write_exported)


@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config.model_type)
def test_logits_of_mixtures_are_the_models(model_folder, write_exported, tmp_path, config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 2 / math.sqrt(parameter.shape[-1]))
    assert_equal_logits(model, model_folder(model), tmp_path / "x.gguf", write_exported)

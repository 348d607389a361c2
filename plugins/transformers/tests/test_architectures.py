"""Seven architectures: a random transformers model, written by the `gguf` package, comes back equal."""

from __future__ import annotations

import gguf
import pytest
import torch

import quantry
from quantry_transformers import names
from quantry_transformers.architectures import ARCHITECTURES

EPS = torch.finfo(torch.float32).eps
# written by the converter as float32, or said by no GGUF file
UNSTATED = {
    "rms_norm_eps",
    "transformers_version",
    "dtype",
    "_name_or_path",
    "initializer_range",
    "architectures",
}


def load(path, **options):
    return quantry.load_model(path, numerics="exact", reference=True, **options)


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("type", ["Q8_0", "F32", "F16"])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_logits_equal_the_dequantized_model(tiny, arch, type):
    made = tiny(arch, type)
    model, _ = load(made.path)
    ids = torch.arange(3, 40)[None] % made.model.config.vocab_size
    expected, found = logits(made.model, ids), logits(model, ids)
    # the same float32 products, summed in another order: K·eps a layer, four matrices deep
    depth = 4 * made.model.config.num_hidden_layers * made.model.config.intermediate_size
    assert (found - expected).abs().max() <= depth * EPS * expected.abs().max()


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_stated_config_field_is_equal(tiny, arch):
    made = tiny(arch)
    model, _ = load(made.path)
    expected, found = made.model.config.to_dict(), model.config.to_dict()
    assert {k: found.get(k) for k in expected if k not in UNSTATED} == {
        k: v for k, v in expected.items() if k not in UNSTATED
    }
    assert found["rms_norm_eps"] == pytest.approx(expected["rms_norm_eps"], rel=1e-6)
    assert found["architectures"] == [type(made.model).__name__]


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_names_are_those_of_the_gguf_package(tiny, arch):
    made = tiny(arch)
    row, layers = ARCHITECTURES[arch], made.model.config.num_hidden_layers
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH["LLAMA" if arch == "mistral" else arch.upper()], layers)
    for name, _ in made.model.named_parameters():
        stem, leaf = name.rsplit(".", 1)
        theirs = f"{table.get_name(stem)}.{leaf}"
        assert names.to_gguf(name, row) == theirs
        assert names.to_hf(theirs, row) == name


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_weights_stay_packed(tiny, arch):
    model, _ = load(tiny(arch).path)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, quantry.PackedModule)}
    assert {str(m.storable().layout) for m in packed.values()} == {"ggml:q8_0"}
    assert not [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]


def test_equal_dense_weights_are_plain_torch_layers(tiny):
    model, _ = load(tiny("llama", "F32").path)
    assert not [m for m in model.modules() if isinstance(m, quantry.PackedModule)]


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 1e6,
                }
            },
        ),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
        ("phi3", {"sliding_window": 16}),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        ),
    ],
)
def test_variants_of_an_architecture(tiny, arch, changes):
    made = tiny(arch, **changes)
    if made.model.config.rope_parameters.get("rope_type") in ("linear", "yarn"):
        assert made.model.config.rope_parameters["factor"] == 4.0
    model, _ = load(made.path)
    ids = torch.arange(3, 60)[None]
    expected = logits(made.model, ids)
    assert torch.allclose(logits(model, ids), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_gemma3_nested_rope_scales_full_attention_only(tiny):
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    made = tiny(
        "gemma3",
        rope_parameters={
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    model, _ = load(made.path)
    assert model.config.rope_parameters == made.model.config.rope_parameters


def test_end_of_text_is_a_list(tiny):
    model, _ = load(tiny("llama").path)
    assert model.generation_config.eos_token_id == [2]
    assert model.generation_config.pad_token_id == 0

"""Rotary parameters: factor tensors, and the frequencies that the built model really has."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch

import quantry

F32 = gguf.GGMLQuantizationType.F32


def load(path):
    return quantry.load_model(path, numerics="exact", reference=True)[0]


def llama3_factors(theta: float, dim: int, factor: float) -> np.ndarray:
    """llama.cpp conversion/llama.py `generate_extra_tensors`, low 1, high 4, original context 8192."""
    found = []
    for freq in 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wavelen = 2 * math.pi / freq
        if wavelen < 8192 / 4:
            found.append(1.0)
        elif wavelen > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelen - 1) / 3
            found.append(float(1 / ((1 - smooth) / factor + smooth)))
    return np.array(found, "f4")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_factors_become_the_rule(tiny, factor):
    factors = llama3_factors(500_000.0, 32, factor)
    made = tiny(
        "llama",
        head_dim=32,
        rope_theta=500_000.0,
        edit=lambda writer, tensors: tensors.update({"rope_freqs.weight": (factors, F32)}),
    )
    model = load(made.path)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model.config.rope_parameters["factor"] == factor
    plain = made.model.model.rotary_emb.inv_freq
    assert torch.allclose(
        model.model.rotary_emb.inv_freq, plain / torch.from_numpy(factors), rtol=1e-5, atol=0
    )


def test_other_factors_divide_the_frequencies(tiny):
    factors = np.linspace(1, 5, 8, dtype="f4")
    made = tiny("llama", edit=lambda writer, tensors: tensors.update({"rope_freqs.weight": (factors, F32)}))
    model, plain = load(made.path), made.model.model.rotary_emb.inv_freq
    expected = plain / torch.from_numpy(factors)
    assert torch.allclose(model.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)
    with torch.inference_mode():
        model(input_ids=torch.arange(250)[None] % 90)
    assert torch.allclose(model.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)
    assert model.model.rotary_emb.attention_scaling == 1.0


def phi3_long(writer, tensors):
    tensors["rope_factors_short.weight"] = (np.linspace(1, 1.5, 8, dtype="f4"), F32)
    tensors["rope_factors_long.weight"] = (np.linspace(1, 9, 8, dtype="f4"), F32)
    writer.kv_data[0].pop("phi3.rope.scaling.original_context_length")
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(1.25)


def test_phi3_takes_long_factors_from_tensors(tiny):
    model = load(tiny("phi3", edit=phi3_long).path)
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope["attention_factor"]) == ("longrope", 1.25)
    assert rope["long_factor"] == pytest.approx(np.linspace(1, 9, 8).tolist(), rel=1e-6)
    assert model.config.original_max_position_embeddings == rope["original_max_position_embeddings"] == 64


def test_phi3_logits_equal_on_both_sides_of_the_original_length(tiny):
    made = tiny("phi3", edit=phi3_long)
    model = load(made.path)
    peer = type(made.model)(model.config).eval()
    peer.load_state_dict(made.model.state_dict())
    for length in (40, 100):
        ids = torch.arange(3, 3 + length)[None] % 90
        with torch.inference_mode():
            expected, found = peer(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.allclose(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_freqs.weight", np.ones(5, "f4")),
        ("rope_freqs.weight", np.array([1, 1, 1, 1, 1, 1, 1, np.nan], "f4")),
        ("rope_freqs.weight", np.zeros(8, "f4")),
        ("rope_factors_short.weight", np.ones(8, "f4")),
    ],
)
def test_impossible_factors_are_named(tiny, name, value):
    made = tiny("llama", edit=lambda writer, tensors: tensors.update({name: (value, F32)}))
    with pytest.raises(quantry.FormatError) as caught:
        load(made.path)
    assert "rope_f" in str(caught.value)


@pytest.mark.parametrize(("stated", "slides"), [(None, "SSSSSFS"), (3, "SSFSSFS"), (0, "FFFFFFF")])
def test_gemma3_layers_slide_by_pattern(tiny, stated, slides):
    def edit(writer, tensors):
        if stated is not None:
            writer.add_sliding_window_pattern(stated)

    config = load(tiny("gemma3", edit=edit).path).config
    assert "".join("S" if kind == "sliding_attention" else "F" for kind in config.layer_types) == slides


def test_gemma3_layers_slide_as_an_array_says(tiny):
    wanted = [True, False, True, True, False, True, False]
    made = tiny("gemma3", edit=lambda writer, tensors: writer.add_sliding_window_pattern(wanted))
    assert [kind == "sliding_attention" for kind in load(made.path).config.layer_types] == wanted

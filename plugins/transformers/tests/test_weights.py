"""Row order and norm offsets, on packed bytes."""

from __future__ import annotations

import pytest
import torch

import quantry
from quantry_transformers.config import hf_config
from quantry_transformers.weights import gguf_weights, unpermute_rows

TYPES = [
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "iq4_nl",
    "tq2_0",
    "mxfp4",
]


def random_rows(layout, rows, columns, seed=0):
    torch.manual_seed(seed)
    buffers = {
        name: torch.randint(0, 256, spec.shape, dtype=torch.uint8)
        for name, spec in layout.buffers((rows, columns)).items()
    }
    return quantry.QuantizedTensor(layout, (rows, columns), buffers)


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp conversion/llama.py `permute`."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("type", TYPES)
def test_rows_of_every_type_move_as_bytes(type, heads):
    layout = quantry.registry().layout(f"ggml:{type}")
    wanted = random_rows(layout, 16, 512)
    stored = quantry.QuantizedTensor(
        layout, (16, 512), {n: interleaved(b, heads) for n, b in wanted.buffers.items()}
    )
    found = unpermute_rows(stored, heads)
    assert all(torch.equal(found.buffers[n], b) for n, b in wanted.buffers.items())
    assert found.layout == layout


def test_a_bias_moves_like_its_rows():
    wanted = torch.arange(16.0)
    stored = quantry.QuantizedTensor(quantry.Dense("f32"), (16,), {"weight": interleaved(wanted, 4)})
    assert torch.equal(unpermute_rows(stored, 4).buffers["weight"], wanted)


def test_grouped_scales_move_with_their_rows():
    layout = quantry.GroupedAffine(4, 32, "in", "int", "f16", False)
    torch.manual_seed(0)
    dense = torch.randn(16, 64)
    specs = layout.buffers((16, 64))
    buffers = {n: (torch.rand(s.shape) * 3).to(quantry.torch_dtype(s.dtype)) for n, s in specs.items()}
    wanted = quantry.QuantizedTensor(layout, dense.shape, buffers)
    stored = quantry.QuantizedTensor(layout, dense.shape, {n: interleaved(b, 2) for n, b in buffers.items()})
    assert torch.equal(unpermute_rows(stored, 2).dequantize(), wanted.dequantize())


def test_rows_that_share_groups_are_refused():
    layout = quantry.GroupedAffine(4, 8, "out", "float", "f16", False)
    buffers = {
        n: torch.zeros(s.shape, dtype=quantry.torch_dtype(s.dtype))
        for n, s in layout.buffers((16, 64)).items()
    }
    with pytest.raises(quantry.ShapeError, match="cannot be moved"):
        unpermute_rows(quantry.QuantizedTensor(layout, (16, 64), buffers), 2)


def test_an_odd_head_is_refused():
    with pytest.raises(quantry.ShapeError, match="12 rows"):
        unpermute_rows(random_rows(quantry.registry().layout("ggml:q8_0"), 12, 32), 4)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemma_norms_are_the_file_minus_one(tiny, arch):
    ckpt = quantry.open(tiny(arch).path)
    weights = gguf_weights(ckpt, hf_config(ckpt))
    norms = [n for n in weights if n.endswith("norm.weight")]
    assert len(norms) == 1 + ckpt.config[f"{arch}.block_count"] * (6 if arch == "gemma3" else 4)
    for name in norms:
        stored = ckpt[weights.stored_name(name)].dequantize()
        assert torch.equal(weights[name].dequantize(), stored - 1)


def test_rows_of_a_weight_are_those_of_the_whole(tiny):
    ckpt = quantry.open(tiny("llama").path)
    weights = gguf_weights(ckpt, hf_config(ckpt))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight"):
        whole, part = weights[name].dequantize(), weights.load(name, slice(8, 24)).dequantize()
        assert torch.equal(part, whole[8:24])


def test_entries_state_what_loading_gives(tiny):
    for arch in ("llama", "gemma3", "phi3"):
        ckpt = quantry.open(tiny(arch).path)
        weights = gguf_weights(ckpt, hf_config(ckpt))
        for entry in weights.entries():
            qt = weights[entry.name]
            assert (qt.layout, qt.shape) == (entry.layout, entry.shape)

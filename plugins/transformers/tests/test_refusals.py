"""Files that lie about the model: each lie is one error that names it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

import quantry
from quantry_transformers.architectures import ARCHITECTURES
from quantry_transformers.config import hf_config
from quantry_transformers.names import to_hf
from quantry_transformers.vocabulary import backend_tokenizer, special_tokens, tokens_of

F32 = gguf.GGMLQuantizationType.F32


def load(path):
    return quantry.load_model(path, numerics="exact", reference=True)


def drop(*keys):
    return lambda writer, tensors: [writer.kv_data[0].pop(key) for key in keys]


def state(key, value, kind=gguf.GGUFValueType.UINT32):
    def edit(writer, tensors):
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)

    return edit


def test_unknown_architecture_is_named_with_the_known_ones(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(quantry.UsageError) as caught:
        load(path)
    message = str(caught.value)
    assert "'mamba'" in message
    assert all(name in message for name in ARCHITECTURES)


@pytest.mark.parametrize(
    "key",
    [
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.model",
    ],
)
def test_a_missing_key_is_named(tiny, key):
    made = tiny("llama", edit=drop(key))
    with pytest.raises(quantry.HeaderError, match=f"'{key}' is missing") as caught:
        load(made.path)
    assert caught.value.file == str(made.path)


@pytest.mark.parametrize(
    ("key", "value", "kind", "said"),
    [
        (
            "llama.block_count",
            2**31,
            gguf.GGUFValueType.UINT32,
            "2147483648, but the file has tensors of 2 layers",
        ),
        ("llama.attention.head_count", 0, gguf.GGUFValueType.UINT32, "at least 1"),
        ("llama.attention.head_count_kv", 3, gguf.GGUFValueType.UINT32, "does not divide"),
        ("llama.attention.value_length", 8, gguf.GGUFValueType.UINT32, "no known class holds both"),
        ("llama.rope.freq_base", float("nan"), gguf.GGUFValueType.FLOAT32, "finite"),
        ("llama.rope.dimension_count", 8, gguf.GGUFValueType.UINT32, "all rotated"),
        ("llama.rope.scaling.type", "dynamic", gguf.GGUFValueType.STRING, "rope.scaling.factor' is missing"),
        ("llama.context_length", "many", gguf.GGUFValueType.STRING, "whole number"),
        ("tokenizer.ggml.eos_token_id", 5000, gguf.GGUFValueType.UINT32, "vocabulary has 96"),
    ],
)
def test_an_impossible_value_is_named(tiny, key, value, kind, said):
    made = tiny("llama", edit=state(key, value, kind))
    with pytest.raises(quantry.HeaderError, match=said):
        load(made.path)


def test_layers_that_differ_are_refused(tiny):
    made = tiny("llama", edit=state("llama.feed_forward_length", [128, 64], gguf.GGUFValueType.ARRAY))
    with pytest.raises(quantry.HeaderError, match="differs between layers"):
        load(made.path)


def test_layers_that_agree_are_one_number(tiny):
    made = tiny("llama", edit=state("llama.attention.head_count_kv", [2, 2], gguf.GGUFValueType.ARRAY))
    assert load(made.path)[0].config.num_key_value_heads == 2


def test_mixture_of_experts_is_refused(tiny):
    made = tiny("llama", edit=state("llama.expert_count", 8))
    with pytest.raises(quantry.UsageError, match="mixture-of-experts"):
        load(made.path)


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight", "blk.0.attn_norm.weight"])
def test_a_missing_tensor_is_named(tiny, name):
    made = tiny("llama", edit=lambda writer, tensors: tensors.pop(name))
    with pytest.raises(quantry.FormatError) as caught:
        load(made.path)
    assert caught.value.tensor == to_hf(name, ARCHITECTURES["llama"])


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "blk.0.attn_q_norm.weight", "surprise", "blk.0.attn_v.bias"]
)
def test_a_surplus_tensor_is_named(tiny, name):
    made = tiny("llama", edit=lambda writer, tensors: tensors.update({name: (np.ones(32, "f4"), F32)}))
    with pytest.raises(quantry.FormatError) as caught:
        load(made.path)
    assert caught.value.tensor == name


def test_a_wrong_shape_is_named(tiny):
    wrong = (np.zeros((64, 96), "f4"), F32)
    made = tiny("llama", edit=lambda writer, tensors: tensors.update({"blk.0.attn_v.weight": wrong}))
    with pytest.raises(quantry.FormatError, match=r"has shape \[64, 96\]") as caught:
        load(made.path)
    assert caught.value.tensor == "blk.0.attn_v.weight"


def test_a_packed_norm_is_refused(tiny):
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = (gguf.quants.quantize(np.ones((1, 64), "f4"), kind)[0], kind)
    made = tiny("llama", edit=lambda writer, tensors: tensors.update({"output_norm.weight": packed}))
    with pytest.raises(quantry.FormatError, match="plain tensor"):
        load(made.path)


class Restated:
    """A checkpoint with one metadata value replaced."""

    def __init__(self, checkpoint, key, value):
        self.checkpoint = checkpoint
        self.config = {**checkpoint.config, key: value}

    def __getattr__(self, name):
        return getattr(self.checkpoint, name)

    def __contains__(self, name):
        return name in self.checkpoint


ODD = ["", "x", -1, 0, 1, 2**63 - 1, 1.5, float("nan"), float("inf"), True]
ODD += [[], ["x"], [1, 2], [0.5], [[1]], None]


def read_all(checkpoint, arch):
    """The file an error names, None where nothing is wrong."""
    try:
        hf_config(checkpoint)
        tokens = tokens_of(checkpoint.config, "x")
        backend_tokenizer(checkpoint.config, arch, "x", tokens)
        special_tokens(checkpoint.config, "x", tokens)
    except quantry.QuantryError as e:
        return e.file
    return None


@pytest.mark.parametrize("arch", ["llama", "gemma3", "phi3"])
def test_every_metadata_value_is_understood_or_refused(tiny, arch):
    checkpoint = quantry.open(tiny(arch).path)
    refused = {
        key: [read_all(Restated(checkpoint, key, value), arch) for value in ODD] for key in checkpoint.config
    }
    assert all(refused[f"{arch}.block_count"])
    assert all(refused[f"{arch}.attention.layer_norm_rms_epsilon"][i] for i in (0, 1, 7, 8, 9, 10))

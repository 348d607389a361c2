"""A folder exported as GGUF, written by the `gguf` package, loads again as the same model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, strategies as st

import quantry
from quantry_transformers.architectures import ARCHITECTURES
from quantry_transformers.gguf_models import GGUF_MODELS
from quantry_transformers.gguf_names import Origin
from quantry_transformers.gguf_state import GgufWeights, gguf_state

EPS = torch.finfo(torch.float32).eps
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "num_experts_per_tok": 2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MIXTURES = {
    "qwen2moe": transformers.Qwen2MoeConfig(
        **SIZES, moe_intermediate_size=32, shared_expert_intermediate_size=96, num_experts=4
    ),
    "qwen3moe": transformers.Qwen3MoeConfig(
        **SIZES, head_dim=32, moe_intermediate_size=32, num_experts=4, norm_topk_prob=True
    ),
    "llama": transformers.MixtralConfig(**SIZES, num_local_experts=4),
}


def runtime():
    (found,) = (r for r in quantry.registry().runtimes if "gguf" in r.conventions)
    return found


def random_model(config):
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 2 / math.sqrt(parameter.shape[-1]))
    return made


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None]).logits


def plain(value):
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.fixture(scope="module")
def mixtures(model_folder):
    """GGUF architecture → (model, its folder opened)."""
    made = {}
    for arch, config in MIXTURES.items():
        model = random_model(config)
        made[arch] = model, quantry.open(model_folder(model))
    return made


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_logits_of_the_written_file_are_the_models(tiny, model_folder, write_exported, tmp_path, arch):
    made = tiny(arch, "F32")
    exported = runtime().export_as(quantry.open(model_folder(made.model)), "gguf")
    path = write_exported(exported, tmp_path / "x.gguf")
    model, _ = quantry.load_model(path, numerics="exact")
    expected, found = logits(made.model), logits(model)
    # equal float32 weights, but for a Gemma norm, whose w + 1 is rounded once: eps a layer's four norms
    rounding = 4 * made.model.config.num_hidden_layers * EPS * ARCHITECTURES[arch].norm_offset
    assert (found - expected).abs().max() <= rounding * expected.abs().max()


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_key_values_are_those_of_the_file_that_a_folder_came_from(tiny, tmp_path, arch):
    """GGUF → UQFF folder → GGUF, packed all the way."""
    made = tiny(arch)
    original = quantry.open(made.path)
    config, weights, files = runtime().export(original)
    quantry.save_uqff(tmp_path / "x.uqff", weights, config=config, files=files)
    exported = runtime().export_as(quantry.open(tmp_path), "gguf")
    found = {key: plain(value) for key, value in exported.config.items()}
    changed = {
        "general.architecture": "llama" if arch == "mistral" else arch,  # as llama.cpp's converter writes it
        # rows of equal score order are renumbered: what is no piece has -1000
        "tokenizer.ggml.scores": found["tokenizer.ggml.scores"],
        # <unk> is named as a special token, hence a control one
        "tokenizer.ggml.token_type": [3, *list(original.config["tokenizer.ggml.token_type"])[1:]],
    }
    unstated = {f"{arch}.attention.{kind}_length" for kind in ("key", "value")} if arch == "qwen2" else set()
    for key, value in {**original.config, **changed}.items():
        if key not in unstated:
            assert found[key.replace("mistral.", "llama.")] == plain(value), key
    for name in original.names():
        ours, theirs = exported.weights.load(name), original[name]
        assert (ours.layout, ours.shape) == (theirs.layout, theirs.shape)
        if theirs.layout.family != "dense":
            assert all(torch.equal(ours.buffers[b], theirs.buffers[b]) for b in theirs.buffers)
        else:  # a norm loses the 1 and gets it again
            assert torch.allclose(ours.dequantize(), theirs.dequantize(), rtol=0, atol=EPS)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_entries_tell_layout_and_shape_of_what_is_loaded(tiny, model_folder, arch):
    weights = gguf_state(quantry.open(model_folder(tiny(arch, "F32").model))).weights
    for entry in weights.entries():
        qt = weights.load(entry.name)
        assert (qt.layout, qt.shape) == (entry.layout, entry.shape), entry.name


@pytest.mark.parametrize("arch", sorted(MIXTURES))
def test_experts_are_stacked_under_the_names_of_the_gguf_package(mixtures, arch):
    model, folder = mixtures[arch]
    weights = gguf_state(folder).weights
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], 2)
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            state[name.replace("gate_up", "gate")], state[name.replace("gate_up", "up")] = value.chunk(2, 1)
        else:
            state[name.removesuffix(".weight")] = value
    named = {f"{table.get_name(name)}.weight": value for name, value in state.items() if "bias" not in name}
    biases = {
        f"{table.get_name(name.removesuffix('.bias'))}.bias": value
        for name, value in state.items()
        if name.endswith(".bias")
    }
    expected = {**named, **biases}
    assert {e.name for e in weights.entries()} == set(expected)
    for name, value in expected.items():
        found = weights.load(name).dequantize()
        if arch == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = 4 if ".attn_q." in name else 2
            value = value.view(heads, 2, -1, value.shape[-1]).transpose(1, 2).reshape(value.shape)
        assert torch.equal(found, value.reshape(found.shape)), name
    # as llama.cpp's loader declares it (src/models/qwen2moe.cpp)
    assert arch != "qwen2moe" or weights.load("blk.0.ffn_gate_inp_shexp.weight").shape == (64,)


@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe"])
def test_a_mixture_is_what_transformers_reads_from_the_file(mixtures, write_exported, tmp_path, arch):
    """With the configuration given: transformers does not read the width of experts."""
    model, folder = mixtures[arch]
    path = write_exported(gguf_state(folder), tmp_path / "x.gguf")
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=model.config, dtype=torch.float32
    )
    assert torch.equal(logits(read.eval()), logits(model))


def test_fused_stacks_and_one_tensor_an_expert_give_the_same(mixtures, tmp_path):
    from safetensors.torch import save_file

    model, folder = mixtures["qwen3moe"]
    for file in folder.source.root.glob("*.json"):
        if "index" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    fused = {name: value.clone() for name, value in model.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in fused
    save_file(fused, tmp_path / "model.safetensors", {"format": "pt"})
    apart, together = gguf_state(folder).weights, gguf_state(quantry.open(tmp_path)).weights
    assert {e.name: e.shape for e in apart.entries()} == {e.name: e.shape for e in together.entries()}
    for entry in apart.entries():
        rows = slice(1, 3)
        ours, theirs = apart.load(entry.name, rows), together.load(entry.name, rows)
        assert torch.equal(ours.dequantize(), theirs.dequantize()), entry.name


@pytest.fixture(scope="module")
def sliced(tiny, model_folder, mixtures):
    """sliced(i): a source and an entry, of every way in which a tensor is made of others."""
    found = [gguf_state(quantry.open(model_folder(tiny(arch, "F32").model))) for arch in ("llama", "gemma3")]
    found += [gguf_state(folder) for _, folder in mixtures.values()]
    pairs = [(state.weights, entry) for state in found for entry in state.weights.entries()]
    return lambda i: pairs[i % len(pairs)]


@given(which=st.integers(0, 2**20), start=st.integers(0, 127), stop=st.integers(0, 127))
def test_rows_equal_the_slice_of_the_whole(sliced, which, start, stop):
    """No tensor here has more than 256 rows, most have 4 to 128; slices beyond the end are cut."""
    weights, entry = sliced(which)
    rows = slice(start, stop)
    found, whole = weights.load(entry.name, rows).dequantize(), weights.load(entry.name).dequantize()
    assert torch.equal(found, whole[rows])


class Stored:
    """A checkpoint of one tensor that notes which rows of it are read."""

    def __init__(self, qt):
        self.qt, self.read = qt, []
        self.config, self.source = {}, SimpleNamespace(path="x", root="x")

    def entry(self, name):
        return quantry.TensorEntry(name, self.qt.layout, self.qt.shape)

    def load(self, name, rows=None):
        self.read.append(rows)
        start, stop, _ = (rows or slice(None)).indices(self.qt.shape[0])
        return self.qt.narrow(0, start, stop - start)


def one_matrix(qt, heads):
    stored = Stored(qt)
    origin = Origin("model.layers.0.self_attn.q_proj.weight", ("q",))
    config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=heads)
    return stored, GgufWeights(stored, {"blk.0.attn_q.weight": origin}, {}, GGUF_MODELS["llama"], config)


def test_rows_of_a_permuted_matrix_cost_the_heads_they_lie_in():
    values = torch.randn(8 * 16, 32)
    stored, weights = one_matrix(
        quantry.QuantizedTensor(quantry.Dense("f32"), values.shape, {"weight": values}), 8
    )
    found = weights.load("blk.0.attn_q.weight", slice(20, 40)).dequantize()
    assert stored.read == [slice(16, 48)]
    expected = values.view(8, 2, 8, 32).transpose(1, 2).reshape(128, 32)
    assert torch.equal(found, expected[20:40])


def test_rows_that_share_a_scale_are_moved_as_numbers():
    """128 rows have one scale; a head has 32: rows are read by 128, and cannot be moved packed."""
    layout = quantry.ScaledFloat("e4m3", (128, 128), "f32")
    shape = (256, 128)
    qt = quantry.QuantizedTensor(layout, shape, layout.sample(shape))
    stored, weights = one_matrix(qt, 8)
    (entry,) = weights.entries()
    assert entry.layout == quantry.Dense("f32")
    found = weights.load("blk.0.attn_q.weight", slice(130, 140))
    assert stored.read == [slice(128, 256)]
    expected = qt.dequantize().view(8, 2, 16, 128).transpose(1, 2).reshape(shape)
    assert torch.equal(found.dequantize(), expected[130:140])


def test_packed_weights_stay_packed(tiny, tmp_path):
    """GPTQ-like groups along a row move with it."""
    made = tiny("llama", "F32")
    config, weights, files = runtime().export(quantry.open(made.path))
    packed = {
        entry.name: quantry.quantize(weights.load(entry.name).dequantize(), "afq4")
        if ".self_attn." in entry.name
        else weights.load(entry.name)
        for entry in weights.entries()
    }
    quantry.save_uqff(tmp_path / "x.uqff", packed, config=config, files=files)
    exported = gguf_state(quantry.open(tmp_path))
    q = exported.weights.load("blk.0.attn_q.weight")
    stored = packed["model.layers.0.self_attn.q_proj.weight"]
    assert q.layout == stored.layout
    expected = stored.dequantize().view(4, 2, 8, 64).transpose(1, 2).reshape(64, 64)
    assert torch.equal(q.dequantize(), expected)


def test_rows_that_are_in_gguf_order_already_are_left(tiny, tmp_path):
    """mistral.rs keeps q and k of a GGUF as they were, and says so in a private key."""
    made = tiny("llama")
    original = quantry.open(made.path)
    config, weights, files = runtime().export(original)
    stored = {entry.name: weights.load(entry.name) for entry in weights.entries()}
    for gguf_name, name in runtime().other_names(original, "gguf").items():
        if "attn_q" in gguf_name or "attn_k" in gguf_name:
            stored[name] = original[gguf_name]
    config = {**config, "_mistralrs_qk_rope_layout": "adjacent"}
    quantry.save_uqff(tmp_path / "x.uqff", stored, config=config, files=files)
    exported = gguf_state(quantry.open(tmp_path))
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight"):
        assert torch.equal(exported.weights.load(name).buffers["blocks"], original[name].buffers["blocks"])


def test_factor_tensors_are_sources_like_any_other(tiny, model_folder):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 5e5}  # fmt: skip
    made = tiny("llama", "F32", rope_parameters=rope, max_position_embeddings=65536)
    weights = gguf_state(quantry.open(model_folder(made.model))).weights
    (entry,) = (e for e in weights.entries() if e.name == "rope_freqs.weight")
    assert (entry.layout, entry.shape) == (quantry.Dense("f32"), (8,))
    assert np.array_equal(
        weights.load(entry.name, slice(2, 5)).dequantize(), weights.load(entry.name).dequantize()[2:5]
    )


def test_an_unknown_name_proposes_the_nearest(tiny, model_folder):
    weights = gguf_state(quantry.open(model_folder(tiny("llama", "F32").model))).weights
    with pytest.raises(quantry.UsageError, match=r"blk\.0\.attn_q\.weight"):
        weights.load("blk.0.attn_qq.weight")


def test_a_gguf_file_and_other_conventions_are_not_exported(tiny, model_folder):
    assert runtime().export_as(quantry.open(tiny("llama").path), "gguf") is None
    assert runtime().export_as(quantry.open(model_folder(tiny("llama", "F32").model)), "onnx") is None


def test_one_expert_is_a_stack(model_folder):
    sizes = {**SIZES, "num_experts_per_tok": 1}
    model = random_model(transformers.MixtralConfig(**sizes, num_local_experts=1))
    weights = gguf_state(quantry.open(model_folder(model))).weights
    assert weights.load("blk.0.ffn_down_exps.weight").shape == (1, 64, 96)


def test_rows_beyond_the_vocabulary_are_unused_tokens(tiny, model_folder):
    made = tiny("llama", "F32", vocab_size=100)
    exported = gguf_state(quantry.open(model_folder(made.model)))
    assert exported.config["tokenizer.ggml.tokens"][96:] == ["[PAD96]", "[PAD97]", "[PAD98]", "[PAD99]"]
    assert exported.config["tokenizer.ggml.token_type"].tolist()[96:] == [5] * 4
    assert exported.config["llama.vocab_size"] == 100


def test_the_name_is_the_folders_or_the_repositorys(tiny, model_folder, tmp_path):
    made = tiny("llama", "F32")
    for folder, name in (
        (tmp_path / "My Llama", "My Llama"),
        (tmp_path / "models--meta--Llama-9" / "snapshots" / ("0a" * 20), "Llama-9"),
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
        model_folder(made.model).rename(folder)
        assert gguf_state(quantry.open(folder)).config["general.name"] == name

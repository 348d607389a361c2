"""A model with adapters computes what one with changed weights computes, and its own weights stay packed."""

from __future__ import annotations

import copy
import gc
import json
import math
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import quantry
from quantry import AdaptedLinear, PackedModule
from quantry.cli import cli
from quantry_transformers.decoder import Decoder, why_not
from quantry_transformers.generate import Generation
from quantry_transformers.report import weights_bytes

ARCHS = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"]
DECODED = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]
IDS = 3 + torch.arange(40) * 7 % 90


def load(path, **options):
    return quantry.load_model(path, numerics="exact", reference=True, **options)[0]


@torch.inference_mode()
def logits(model, ids=IDS):
    return model(input_ids=ids.unsqueeze(0)).logits[0]


@torch.inference_mode()
def by_decoder(model, kind=Decoder):
    """After 20 tokens, and each of those that follow."""
    decoder = kind(model, len(IDS))
    return torch.stack([decoder(IDS[:20]), *(decoder(i) for i in IDS[20:].split(1))])


def double(made):
    return copy.deepcopy(made.model).double()


def assert_near(found, expected, model, epsilon=2**-24):
    """Sums of at most K products of float32, one behind the other in each layer."""
    columns = max(m.weight.shape[1] for m in model.modules() if isinstance(m, nn.Linear))
    bound = model.config.num_hidden_layers * columns * epsilon * expected.abs().max()
    assert (found - expected).abs().max() <= bound


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_equal_those_of_changed_weights(tiny, lora, tmp_path, arch):
    """Every linear layer and the embedding changed; llama has two heads of q for one of k."""
    made = tiny(arch)
    change = lora(made)
    model = load(made.path, adapter=change.gguf(tmp_path / "lora"))
    plain, expected = logits(double(made)), logits(change.add_to(double(made)))
    assert (plain - expected).abs().max() > 0.1 * plain.abs().max()
    assert_near(logits(model), expected, made.model)
    if arch in DECODED:
        assert why_not(model) is None
        assert_near(by_decoder(model), expected[19:], made.model)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "phi3"])
def test_a_gguf_base_takes_names_of_the_models_modules(tiny, lora, tmp_path, arch):
    made = tiny(arch)
    change = lora(made)
    model = load(made.path, adapter=change.peft(tmp_path / "lora"))
    assert_near(logits(model), logits(change.add_to(double(made))), made.model)


@pytest.mark.parametrize("only", ["q_proj", "v_proj", "up_proj", "self_attn", "embed_tokens"])
def test_of_layers_that_share_an_x_some_may_be_adapted(tiny, lora, tmp_path, only):
    made = tiny("llama")
    change = lora(made, only=only)
    model = load(made.path, adapter=change.gguf(tmp_path / "lora"))
    assert why_not(model) is None
    assert_near(by_decoder(model), logits(change.add_to(double(made)))[19:], made.model)


def test_generation_gives_the_tokens_of_changed_weights(tiny, lora, tmp_path):
    made = tiny("qwen3")
    change = lora(made)
    model = load(made.path, adapter=change.peft(tmp_path / "lora"))
    expected = change.add_to(double(made)).generate(
        IDS[None, :6], attention_mask=torch.ones(1, 6, dtype=torch.long), max_new_tokens=12, do_sample=False
    )
    assert list(Generation(model, IDS[:6].tolist(), 12, stop=())) == expected[0, 6:].tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: install g++")
def test_compiled_steps_serve_adapted_layers(tiny, lora, tmp_path):
    from quantry_transformers.compiled import CompiledDecoder

    made = tiny("llama")
    change = lora(made)
    model = load(made.path, adapter=change.gguf(tmp_path / "lora"))
    assert_near(by_decoder(model, CompiledDecoder), logits(change.add_to(double(made)))[19:], made.model)


def test_adapters_add_up_with_their_scales(tiny, lora, tmp_path):
    made = tiny("llama")
    one, two = lora(made, seed=1), lora(made, rank=3, only="mlp", seed=2)
    first, second = one.gguf(tmp_path / "one.gguf"), two.peft(tmp_path / "two")
    model = load(made.path, adapter=[first, f"{second}=-0.75"])
    expected = logits(two.add_to(one.add_to(double(made)), -0.75))
    assert_near(logits(model), expected, made.model)
    assert model.model.layers[0].mlp.up_proj.a.shape[0] == 7, "they are one matrix"


def test_a_scale_of_zero_changes_nothing(tiny, lora, tmp_path):
    made = tiny("llama")
    path = lora(made).gguf(tmp_path / "lora")
    assert torch.equal(logits(load(made.path, adapter=f"{path}=0")), logits(load(made.path)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_halves_of_another_type_are_used_without_loss(tiny, lora, tmp_path, dtype):
    made = tiny("llama")
    change = lora(made)
    path = change.gguf(tmp_path / "lora", dtype)
    change.halves = {
        name: tuple(torch.from_numpy(t.numpy().astype(dtype).astype(np.float32)) for t in pair)
        for name, pair in change.halves.items()
    }
    assert_near(logits(load(made.path, adapter=path)), logits(change.add_to(double(made))), made.model)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_head_is_changed_tied_or_not(tiny, lora, tmp_path, arch):
    """qwen2's is tied here: the head's change is its own, the embedding has none of it."""
    made = tiny(arch)
    change = lora(made, only="up_proj")
    generator = torch.Generator().manual_seed(5)
    change.halves["lm_head.weight"] = (
        torch.randn(4, 64, generator=generator) / 8,
        torch.randn(96, 4, generator=generator) / 4,
    )
    model = load(made.path, adapter=change.peft(tmp_path / "lora"))
    assert_near(logits(model), logits(change.add_to(double(made))), made.model)
    assert why_not(model) is None


def test_bfloat16_activations(tiny, lora, tmp_path):
    """Every layer rounds to 8 bits some ten times; each rounding is half a unit of the last."""
    made = tiny("llama")
    change = lora(made)
    model = load(made.path, adapter=change.gguf(tmp_path / "lora"), dtype=torch.bfloat16)
    expected = logits(change.add_to(double(made)))
    assert logits(model).dtype is torch.bfloat16
    error = (logits(model) - expected).abs().max() / expected.abs().max()
    assert error <= 10 * made.model.config.num_hidden_layers * 2**-9 * math.sqrt(10)


def test_the_base_stays_packed(tiny, lora, tmp_path):
    """Its buffers are those of a model without adapter, and no float tensor of a weight's size is made."""
    made = tiny("llama", hidden_size=96, intermediate_size=160)
    plain = load(made.path)
    path = lora(made).gguf(tmp_path / "lora")
    gc.collect()
    before = {id(t) for t in gc.get_objects() if issubclass(type(t), torch.Tensor)}
    model = load(made.path, adapter=path)
    gc.collect()
    smallest = min(m.weight.numel() for m in made.model.modules() if isinstance(m, nn.Linear))
    fresh = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and id(t) not in before]
    assert not [t.shape for t in fresh if t.is_floating_point() and not t.is_meta and t.numel() >= smallest]
    packed = {n.replace(".base", ""): m for n, m in model.named_modules() if isinstance(m, PackedModule)}
    expected = {n: m for n, m in plain.named_modules() if isinstance(m, PackedModule)}
    assert packed.keys() == expected.keys()
    for name, module in packed.items():
        for buffer, own in expected[name].qt.buffers.items():
            assert torch.equal(module.qt.buffers[buffer], own)
    assert weights_bytes(model) == weights_bytes(plain)


def test_preparing_again_keeps_the_change(tiny, lora, tmp_path):
    made = tiny("qwen3")
    model = load(made.path, adapter=lora(made).gguf(tmp_path / "lora"))
    before = logits(model)
    quantry.prepare(model, torch.float32, "exact", True)
    assert torch.equal(logits(model), before)


def test_copies_keep_the_change(tiny, lora, tmp_path):
    made = tiny("gemma3")
    model = load(made.path, adapter=lora(made).gguf(tmp_path / "lora"))
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, AdaptedLinear):
            module.b.zero_()
    assert not torch.allclose(logits(copied), logits(model))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_isq_packs_the_base_beneath_an_adapter(tiny, lora, model_folder, tmp_path):
    made = tiny("qwen3")
    change = lora(made)
    model = load(model_folder(made.model), adapter=change.gguf(tmp_path / "lora"), isq="q8_0")
    assert model.model.layers[0].self_attn.q_proj.base.layout.family.startswith("ggml")
    dense = double(made)
    for name, module in model.named_modules():
        if isinstance(module, quantry.QuantLinear):
            target = dense.get_submodule(name.removesuffix(".base"))
            target.weight = nn.Parameter(module.storable().dequantize().double(), requires_grad=False)
    table = model.model.embed_tokens.base
    dense.model.embed_tokens.weight = nn.Parameter(
        table.storable().dequantize().double(), requires_grad=False
    )
    assert_near(logits(model), logits(change.add_to(dense)), made.model)


def test_a_dense_model_is_adapted_too(tiny, lora, model_folder, tmp_path):
    made = tiny("llama")
    change = lora(made)
    model = load(model_folder(made.model), adapter=change.gguf(tmp_path / "lora"))
    assert type(model.model.layers[0].mlp.up_proj.base) is nn.Linear
    assert_near(logits(model), logits(change.add_to(double(made))), made.model)


def test_run_reports_adapters_apart_from_weights(tiny, lora, tmp_path):
    made = tiny("llama")
    one, two = lora(made), lora(made, rank=2, only="q_proj")
    first, second = one.gguf(tmp_path / "one.gguf"), two.peft(tmp_path / "two")

    def document(*adapters):
        options = [f"--adapter={path}" for path in adapters]
        arguments = ["run", str(made.path), "-p", "the", "-n", "3", "--json", "--reference", *options]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    plain, adapted = document(), document(first, f"{second}=0.5")
    assert plain["adapters"] == []
    sizes = [sum(a.numel() + b.numel() for a, b in change.halves.values()) * 4 for change in (one, two)]
    assert adapted["adapters"] == [
        {"path": str(first), "scale": 1.0, "rank": 4, "weights": 15, "bytes": sizes[0]},
        {"path": str(second), "scale": 0.5, "rank": 2, "weights": 2, "bytes": sizes[1]},
    ]
    assert adapted["weights_bytes"] == plain["weights_bytes"]
    assert adapted["kernels"] == plain["kernels"]

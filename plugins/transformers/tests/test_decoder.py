"""The decoder computes what the model's own code does, and stands back where it might not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantry
from quantry_transformers.decoder import Decoder, why_not
from quantry_transformers.generate import Generation
from quantry_transformers.key_values import KeyValues

# keys for two heads, for each, for all; a window; biases (qwen2); norms of heads (qwen3); all of it (gemma3)
VARIANTS = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 1}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gemma3", {}),
]


@pytest.fixture(scope="module")
def load(tiny):
    def loaded(arch, **changes):
        return quantry.load_model(tiny(arch, **changes).path, numerics="exact", reference=True)[0]

    return loaded


def by_model(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids.unsqueeze(0)).logits[0]


def by_decoder(model, ids, prompt):
    with torch.inference_mode():
        decoder = Decoder(model, len(ids))
        return torch.stack([decoder(ids[:prompt]), *(decoder(i) for i in ids[prompt:].split(1))])


@pytest.mark.parametrize("prompt", [1, 8, 9, 20])
@pytest.mark.parametrize(("arch", "changes"), VARIANTS)
def test_logits_equal_the_models(load, arch, changes, prompt):
    """Prompts below, at and above windows of 8, and 12 tokens after them."""
    model = load(arch, **changes)
    assert why_not(model) is None
    ids = 3 + torch.arange(prompt + 12) * 7 % 90
    expected = by_model(model, ids)[prompt - 1 :]
    torch.testing.assert_close(by_decoder(model, ids, prompt), expected, rtol=1e-4, atol=1e-4)


def test_a_window_slides_through_its_buffer():
    """More steps than the buffer has room for: it moves, and what is seen stays the last 4 tokens."""
    tokens = torch.arange(1000.0)
    seen = KeyValues(room=1000, window=4)
    prompt = tokens[:3].view(1, 1, 3, 1).expand(1, 2, 3, 5)
    seen.start(prompt, -prompt)
    for at in range(3, 1000):
        row = tokens[at].expand(2, 5)
        keys, values = seen.append(row, -row)
        expected = tokens[at - 3 : at + 1].view(1, 1, 4, 1).expand(1, 2, 4, 5)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)


def test_a_long_prompt_leaves_a_window_behind():
    prompt = torch.arange(20.0).view(1, 1, 20, 1)
    seen = KeyValues(room=30, window=4)
    seen.start(prompt, prompt)
    keys, _ = seen.append(torch.tensor([[20.0]]), torch.tensor([[20.0]]))
    assert keys.flatten().tolist() == [17, 18, 19, 20]


def test_weights_changed_between_generations_are_seen(load):
    model = copy.deepcopy(load("qwen3"))
    ids = torch.arange(3, 12)
    before = by_decoder(model, ids, 8)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(-2)
    after = by_decoder(model, ids, 8)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, by_model(model, ids)[7:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["phi3", "gemma2"])
def test_other_models_run_by_their_own_code(load, arch):
    model = load(arch)
    assert "not one of" in why_not(model)
    assert len(list(Generation(model, [5, 6], 3, stop=()))) == 3


def _hook(model):
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *args: None)


def _replaced_forward(model):
    own = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: own(x)


def _stranger(model):
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) + 1

    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapter(attention.q_proj).eval()


def _angles_of_another_kind(model):
    model.model.rotary_emb.rope_type = "dynamic"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hook, "down_proj has hooks"),
        (_replaced_forward, "mlp has hooks"),
        (_stranger, "Adapter"),
        (_angles_of_another_kind, "dynamic"),
        (lambda model: model.train(), "training"),
        (lambda model: model.to(torch.bfloat16), "bfloat16"),
    ],
)
def test_a_model_that_was_changed_runs_by_its_own_code(load, change, reason):
    model = copy.deepcopy(load("llama"))
    assert why_not(model) is None
    change(model)
    assert reason in why_not(model)


def test_a_layer_that_computes_something_else_is_noticed(load, monkeypatch):
    """As a release of transformers might: the class keeps its name and scales what it adds."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    own = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: own(self, x) * 1.1)
    assert "do not compute" in why_not(copy.deepcopy(load("llama")))


def test_a_layer_without_an_attribute_is_noticed(load):
    model = copy.deepcopy(load("llama"))
    del model.model.layers[0].mlp.act_fn
    assert "do not compute" in why_not(model)


def test_an_environment_variable_turns_it_off(load, monkeypatch):
    monkeypatch.setenv("QUANTRY_DECODER", "off")
    assert why_not(load("llama")) == "QUANTRY_DECODER=off"

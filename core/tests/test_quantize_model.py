"""Quantizing an nn.Module in place, with a toy plugin."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import quantry
from quantry import QuantEmbedding, QuantLinear, TiedHead, ValueDomainError

pytestmark = pytest.mark.usefixtures("toys")


class Model(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(3)
        self.embed_tokens = nn.Embedding(10, 64, padding_idx=0)
        self.up_proj = nn.Linear(64, 96)
        self.down_proj = nn.Linear(96, 64, bias=False)
        self.gate = nn.Linear(64, 2)
        self.norm = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 10, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids):
        x = self.norm(self.embed_tokens(ids))
        return self.lm_head(x + self.down_proj(torch.relu(self.up_proj(x)))) + self.gate(x).sum()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_quantized_in_place(tied):
    model = Model(tied)
    dense = copy.deepcopy(model)
    done = quantry.quantize_model(model, "toy64")
    assert done == {
        "embed_tokens": "toy:32",
        "up_proj": "toy:64",
        "down_proj": "toy:32",
        "lm_head": "toy:32",
    }
    assert isinstance(model.embed_tokens, QuantEmbedding)
    assert isinstance(model.up_proj, QuantLinear)
    assert isinstance(model.gate, nn.Linear)
    assert isinstance(model.lm_head, TiedHead if tied else QuantLinear)
    ids = torch.tensor([[1, 2, 9]])
    with quantry.use(reference="allow"), torch.no_grad():
        assert torch.allclose(model(ids), dense(ids), atol=0.2)


def test_a_model_keeps_what_is_excluded_or_does_not_fit():
    model = nn.Sequential(nn.Linear(20, 3), nn.Linear(64, 4), nn.Linear(64, 4))
    done = quantry.quantize_model(model, "toy128", exclude=["2"], topology={"/1/": "toy32"})
    assert done["1"] == "toy:32"
    assert "no multiple" in done["0"]
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[2], nn.Linear)


def test_nan_in_a_model_names_the_module():
    model = Model()
    with torch.no_grad():
        model.up_proj.weight[2, 3] = float("nan")
    with pytest.raises(ValueDomainError, match="row 2, column 3") as e:
        quantry.quantize_model(model, "toy64")
    assert e.value.tensor == "up_proj.weight"

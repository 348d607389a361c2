"""Stacks of experts are packed in place, in any model of transformers' common interface, and run packed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import quantry
from quantry_transformers.packed_experts import PackedExperts

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64, "num_experts_per_tok": 2,
    "pad_token_id": 0,
}  # fmt: skip
QWEN3 = transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=32, num_experts=4, decoder_sparse_step=1)
MIXTRAL = transformers.MixtralConfig(**SIZES, num_local_experts=4)
GPT_OSS = transformers.GptOssConfig(**SIZES, num_local_experts=4, layer_types=["full_attention"])


def model(config: Any) -> Any:
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1)  # expert stacks are created uninitialized
    return made


@pytest.mark.parametrize("config", [QWEN3, MIXTRAL], ids=["qwen3", "mixtral"])
def test_experts_are_packed_and_give_what_their_dequantized_weights_give(config: Any) -> None:
    packed = model(config)
    dense = copy.deepcopy(packed)
    done = quantry.quantize_model(packed, "q8_0")
    stacks = [name for name in done if "experts" in name]
    assert len(stacks) == 2
    assert all(done[name] == "ggml:q8_0" for name in stacks)
    (experts,) = (m for m in packed.modules() if isinstance(m, PackedExperts))
    assert not any("experts" in name and p.dim() == 3 for name, p in packed.named_parameters())
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, quantry.PackedModule):
                target = dense.get_submodule(name.rpartition(".")[0]) if "experts" in name else None
                if target is not None:
                    getattr(target, name.rpartition(".")[2]).copy_(module.storable().dequantize())
                else:
                    dense.get_submodule(name).weight.copy_(module.storable().dequantize())
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad(), quantry.use(numerics="exact"):
        ours, theirs = packed(ids).logits, dense(ids).logits
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert experts.down_proj.num_experts == 4


def test_transposed_stacks_stay_dense_and_it_is_said() -> None:
    packed = model(GPT_OSS)
    done = quantry.quantize_model(packed, "q8_0")
    said = {name.rpartition(".")[2]: text for name, text in done.items() if "experts" in name}
    assert set(said) == {"gate_up_proj", "down_proj"}
    assert all(text.startswith("stays dense") for text in said.values())


def test_a_token_of_no_expert_adds_nothing() -> None:
    packed = model(QWEN3)
    quantry.quantize_model(packed, "q8_0")
    (experts,) = (m for m in packed.modules() if isinstance(m, PackedExperts))
    hidden, weights = torch.randn(3, 64), torch.ones(3, 2)
    with torch.no_grad():
        some = experts(hidden, torch.tensor([[1, 4], [4, 4], [0, 2]]), weights)
        one = experts(
            hidden, torch.tensor([[1, 1], [1, 1], [0, 2]]), torch.tensor([[1.0, 0.0], [0, 0], [1, 1]])
        )
    assert torch.allclose(some, one, atol=1e-5)
    assert some[1].abs().max() == 0


@pytest.mark.parametrize("config", [QWEN3, MIXTRAL], ids=["qwen3", "mixtral"])
def test_a_folder_of_experts_loads_plain_packed_and_from_uqff(config: Any, tmp_path: Path) -> None:
    from quantry.isq import quantize_checkpoint
    from quantry_transformers.build import build_model
    from quantry_transformers.placing import Placing
    from quantry_transformers.runtime import configured

    dense = model(config)
    dense.save_pretrained(tmp_path / "hf")  # one tensor an expert
    ids = torch.arange(24).view(2, 12)

    def logits(folder: Path, isq: str | None = None) -> torch.Tensor:
        built = build_model(*configured(quantry.open(folder)), Placing(torch.float32, isq=isq))
        assert any(isinstance(m, PackedExperts) for m in built.modules())
        with torch.no_grad(), quantry.use(numerics="exact"):
            return built(ids).logits

    with torch.no_grad():
        assert torch.allclose(logits(tmp_path / "hf"), dense(ids).logits, rtol=1e-4, atol=1e-4)
    quantize_checkpoint(tmp_path / "hf", tmp_path / "out" / "x.uqff", "q8_0")
    packed = logits(tmp_path / "out")
    assert torch.allclose(packed, logits(tmp_path / "hf", "q8_0"), rtol=1e-5, atol=1e-5)
    assert not torch.equal(packed, logits(tmp_path / "hf"))

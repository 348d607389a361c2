"""Adapters of expert stacks: of single experts as peft names them, and of whole stacks as GGUF does."""

from __future__ import annotations

import copy
import json

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import quantry
from quantry import UsageError
from quantry_transformers.packed_experts import PackedExperts

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "num_experts_per_tok": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "qwen3_moe": transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=32, num_experts=4),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4),
}
PARTS = {
    "qwen3_moe": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    "mixtral": (
        "block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2",
    ),
}  # fmt: skip
IDS = torch.arange(3, 35)[None]


@pytest.fixture
def base(hf_folder, tmp_path):
    """base(kind, stacked): a folder with one tensor an expert, or the model's own fused stacks."""

    def make(kind, stacked):
        model = hf_folder(tmp_path / "hf", CONFIGS[kind])
        if stacked:
            tensors = {n: p.detach().contiguous() for n, p in model.named_parameters()}
            save_file(tensors, tmp_path / "hf" / "model.safetensors")
        return model, tmp_path / "hf"

    return make


def halves(experts, part, rank, seed):
    """Random a [E, r, K], b [E, N, r] for gate, up (0, 1) or down (2) of the model's experts."""
    _, rows, columns = (experts.down_proj if part == 2 else experts.gate_up_proj).shape
    rows = rows if part == 2 else rows // 2
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, rank, columns, generator=generator) / 8
    return a, torch.randn(4, rows, rank, generator=generator) / 2


def changed(model, changes):
    """The float64 model; changes: (layer, part, a, b, scale), b of unchanged experts zero."""
    dense = copy.deepcopy(model).double()
    dense.set_experts_implementation("eager")  # torch groups no float64 products
    with torch.no_grad():
        for layer, part, a, b, scale in changes:
            experts = dense.model.layers[layer].mlp.experts
            delta = scale * b.double() @ a.double()
            half = experts.gate_up_proj.shape[1] // 2
            if part == 2:
                experts.down_proj += delta
            else:
                experts.gate_up_proj[:, part * half : (part + 1) * half] += delta
    return dense


@torch.inference_mode()
def assert_near(path, model, changes, adapter):
    found = quantry.load_model(path, adapter=adapter, numerics="exact", reference=True)[0]
    assert any(isinstance(m, PackedExperts) for m in found.modules())
    expected = changed(model, changes)(input_ids=IDS).logits
    assert not torch.allclose(model(input_ids=IDS).logits.double(), expected, rtol=1e-2, atol=1e-2)
    bound = 2 * 64 * 2**-24 * expected.abs().max()  # layers × columns, as in test_adapters
    assert (found(input_ids=IDS).logits - expected).abs().max() <= bound


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_single_experts(base, tmp_path, kind, stacked):
    """Two adapters: one of ranks 3 on two experts' gate, up and down, one of rank 2 on another's down."""
    model, path = base(kind, stacked)
    changes, paths = [], []
    for number, (rank, parts, chosen, scale) in enumerate(
        [(3, (0, 1, 2), (0, 2), 2.0), (2, (2,), (3,), 0.5)]
    ):
        tensors = {}
        for part in parts:
            a, b = halves(model.model.layers[1].mlp.experts, part, rank, 10 * number + part)
            b[[e for e in range(4) if e not in chosen]] = 0
            changes.append((1, part, a, b, scale))
            for e in chosen:
                stem = "base_model.model.model.layers.1." + PARTS[kind][part].format(e)
                tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = (
                    a[e].clone(),
                    b[e].clone(),
                )
        paths.append(tmp_path / f"lora{number}")
        paths[-1].mkdir()
        save_file(tensors, paths[-1] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank}
        (paths[-1] / "adapter_config.json").write_text(json.dumps(config))
    assert_near(path, model, changes, paths)


@pytest.mark.parametrize("stacked", [False, True])
def test_whole_stacks_of_a_gguf_adapter(base, tmp_path, stacked):
    model, path = base("qwen3_moe", stacked)
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "qwen3moe")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    changes = []
    for part, name in enumerate(("gate", "up", "down")):
        a, b = halves(model.model.layers[0].mlp.experts, part, 3, part)
        changes.append((0, part, a, b, 1.0))  # without alpha the scale is 1
        writer.add_tensor(f"blk.0.ffn_{name}_exps.weight.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"blk.0.ffn_{name}_exps.weight.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_near(path, model, changes, tmp_path / "lora.gguf")


def test_an_expert_that_the_model_lacks_is_named(base, tmp_path):
    _, path = base("qwen3_moe", False)
    name = "model.layers.0.mlp.experts.4.up_proj"
    tensors = {
        f"base_model.model.{name}.lora_A.weight": torch.ones(2, 64),
        f"base_model.model.{name}.lora_B.weight": torch.ones(32, 2),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(UsageError) as e:
        quantry.load_model(path, adapter=tmp_path)
    assert e.value.tensor == f"{name}.weight"

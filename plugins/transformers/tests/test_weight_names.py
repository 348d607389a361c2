"""Names under which a module's input counts, where the model's modules and a checkpoint's tensors differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import quantry
from quantry.isq import quantize_checkpoint
from quantry_transformers.importance import collect_importance
from quantry_transformers.watch import Watch
from quantry_transformers.weight_names import Watched, expert_counts, watched_modules

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_experts": 3,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("width", [32, 64])
def test_a_fused_stack_of_experts_has_names_that_isq_takes(
    width: int, tmp_path: Path, hf_folder: Callable[..., Any]
) -> None:
    """Plans take a stack apart unless its sides are equally long, when it cannot be told which are rows."""
    config = transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=width, pad_token_id=0)
    model = hf_folder(tmp_path / "m", config)
    save_file(dict(model.state_dict()), tmp_path / "m" / "model.safetensors")  # as the modules name them
    found = collect_importance(tmp_path / "m", "the quick brown fox jumps", chunk_tokens=12)
    (plan,) = quantize_checkpoint(
        tmp_path / "m", tmp_path / "out" / "x.uqff", "q4_0", importance=found.weights
    ).plans
    stem = "model.layers.0.mlp.experts"
    left = {f"{stem}.gate_up_proj", f"{stem}.down_proj"} if width == 64 else set()
    assert set(found.weights) == left | {f"{key}.weight" for key in plan.keys if "embed" not in key}
    assert {len(v) for name, v in found.weights.items() if name.startswith(stem)} == {3}


class Block(nn.Module):
    """Experts that are modules of their own, as in models whose code a folder brings."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2, bias=False)
        self.experts = nn.ModuleList(nn.ModuleDict({"w1": nn.Linear(4, 6, bias=False)}) for _ in range(2))

    def forward(self, x: Tensor) -> None:
        self.gate(x)
        self.experts[0]["w1"](x[:3])
        self.experts[1]["w1"](x[3:3])  # chosen by no token


def test_experts_that_are_single_modules_are_rows_of_one_stack() -> None:
    block = Block()
    own = {name: f"layers.0.moe.{name}" for name, _ in block.named_parameters()}
    block.get_output_embeddings = block.get_input_embeddings = lambda: None
    plan: Any = SimpleNamespace(model=block, own_names=own, stacks=[])
    watched = watched_modules(plan)
    assert watched == {
        f"experts.{i}.w1": Watched(("layers.0.moe.experts.gate_proj.weight",), i) for i in range(2)
    }
    seen: list[tuple[Any, Any, Any]] = []
    watch = Watch(lambda *shown: seen.append(shown), watched)
    x = torch.randn(5, 4)
    with torch.no_grad(), watch.on(block):
        block(x)
        watch.flush()
        block(x[:0])
    ((names, rows, experts),) = seen
    assert names == ("layers.0.moe.experts.gate_proj.weight",)
    assert torch.equal(rows, x[:3])
    assert experts.tolist() == [0, 0, 0]
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_experts_are_counted_in_every_way_they_are_stored() -> None:
    dense = quantry.Dense("f32")
    entries = [
        quantry.TensorEntry("a.experts.0.w2.weight", dense, (8, 4)),
        quantry.TensorEntry("a.experts.6.w2.weight", dense, (8, 4)),
        quantry.TensorEntry("b.experts.gate_up_proj", dense, (5, 8, 6)),
        quantry.TensorEntry("c.experts.up_proj.weight", dense, (2, 8, 6)),
        quantry.TensorEntry("d.q_proj.weight", dense, (8, 6)),
    ]
    found = expert_counts(entries)
    assert found["a.experts.down_proj.weight"] == 7
    assert found["b.experts.gate_proj.weight"] == found["b.experts.down_proj.weight"] == 5
    assert found["b.experts.gate_up_proj"] == 5
    assert found["c.experts.up_proj.weight"] == 2
    assert "d.q_proj.weight" not in found

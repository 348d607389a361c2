"""Expert stacks of transformers' mixture models, packed: one module for every class of the common interface.

transformers gives its expert classes the same parameters and switches (integrations/moe.py,
`use_experts_implementation`): `gate_up_proj` or `up_proj` [E, N, K], `down_proj`, `has_gate`,
`is_transposed`, `has_bias`, `_apply_gate`; their forward takes hidden states, chosen experts and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantry import QuantExperts, QuantizedTensor

__all__ = ["PackedExperts"]


class PackedExperts(nn.Module):
    """hidden [T, K], experts [T, k], weights [T, k] → [T, K]: each token through its k experts, summed.

    packed: `down_proj` with `gate_up_proj`, with `gate_proj` and `up_proj`, or without a gate `up_proj`.
    Experts' ids that equal their number mean none (tokens of other ranks, in transformers' convention).
    """

    def __init__(self, module: Any, packed: Mapping[str, QuantizedTensor]) -> None:
        super().__init__()
        self.has_gate, self.act_fn = bool(module.has_gate), module.act_fn
        self._gate = type(module)._apply_gate
        for name, value in vars(module).items():  # what the class's own gate may read
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)
        for name, qt in packed.items():
            bias = getattr(module, f"{name}_bias", None) if module.has_bias else None
            stack = QuantExperts(qt, bias)
            stack.compute_dtype = module.down_proj.dtype
            self.add_module(name, stack)
        self._parted = "gate_proj" in packed

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As the dense module computes it."""
        missing = top_k_index >= self.down_proj.num_experts
        ids = top_k_index.masked_fill(missing, 0)
        inner = self._inner(hidden_states.unsqueeze(1), ids)
        out = self.down_proj(inner, ids)
        weights = top_k_weights.masked_fill(missing, 0).to(out.dtype)
        return torch.einsum("tkn,tk->tn", out, weights).to(hidden_states.dtype)

    def _inner(self, x: Tensor, ids: Tensor) -> Tensor:
        if not self.has_gate:
            return self.act_fn(self.up_proj(x, ids))  # type: ignore[no-any-return]
        if self._parted:
            both = torch.cat([self.gate_proj(x, ids), self.up_proj(x, ids)], -1)
        else:
            both = self.gate_up_proj(x, ids)
        return self._gate(self, both)  # type: ignore[no-any-return]

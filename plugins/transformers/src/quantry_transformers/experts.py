"""Packs the expert stacks of transformers' mixture models in place. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from quantry import ModulePacker, QuantizedTensor, Role

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ExpertsPacker"]

# what `use_experts_implementation` (transformers/integrations/moe.py) gives every expert class
_SWITCHES = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate", "act_fn")


class ExpertsPacker(ModulePacker):
    """Packs expert modules whose stacks are [experts, out, in] without a norm after them."""

    name: ClassVar[str] = "transformers.experts"

    def weights(self, module: nn.Module) -> Mapping[str, Role]:
        """The two stacks; {} for other modules, and for transposed stacks, whose rows are inputs."""
        if not all(hasattr(module, switch) for switch in _SWITCHES) or module.is_transposed:
            return {}
        if getattr(module, "has_post_expert_norm", False):
            return {}
        up = "gate_up_proj" if module.has_gate else "up_proj"
        names = (up, "down_proj")
        parameters = dict(module.named_parameters(recurse=False))
        if any(name not in parameters or parameters[name].dim() != 3 for name in names):
            return {}
        return dict.fromkeys(names, "experts")

    def pack(self, module: nn.Module, packed: Mapping[str, QuantizedTensor]) -> nn.Module:
        """A `PackedExperts` with the module's activation and biases."""
        from quantry_transformers.packed_experts import PackedExperts

        return PackedExperts(module, packed)

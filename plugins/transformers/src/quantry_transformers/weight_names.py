"""The weights that each module of a model multiplies by, under the names that plans and importance use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from quantry import Shape, TensorEntry, expert_parts, expert_slot, role_of
from quantry_transformers.build import tied_head

if TYPE_CHECKING:
    from quantry_transformers.build import Blueprint
    from quantry_transformers.expert_weights import Stack

__all__ = ["Watched", "expert_counts", "head_name", "watched_modules"]


@dataclass(frozen=True, slots=True)
class Watched:
    """Names of the weights that one module multiplies its input by; expert: where it is one of a stack."""

    names: tuple[str, ...]
    expert: int | None = None


def watched_modules(plan: Blueprint) -> dict[str, Watched]:
    """Path → of linear layers and stacks of experts, as they will stand when filled; head and routers not."""
    head = plan.model.get_output_embeddings()
    found: dict[str, Watched] = {}
    for path, module in plan.model.named_modules():
        own = plan.own_names.get(f"{path}.weight")
        if own is None or module is head or getattr(type(module), "forward", None) is not nn.Linear.forward:
            continue
        slot = expert_slot(own)
        if slot is not None:
            found[path] = Watched((slot[0],), slot[1])
        elif role_of(own, tuple(module.weight.shape)) == "linear":
            found[path] = Watched((own,))
    for stack in plan.stacks:
        found |= {f"{stack.path}.{part}": Watched(names) for part, names in _stack_names(plan, stack).items()}
    return found


def head_name(plan: Blueprint) -> str | None:
    """The weight of the output head: that of the embedding where they are one."""
    model = plan.model
    head = model.get_output_embeddings()
    module = model.get_input_embeddings() if tied_head(model, plan.weights) else head
    return next((plan.own_names.get(f"{p}.weight") for p, m in model.named_modules() if m is module), None)


def expert_counts(entries: Iterable[TensorEntry]) -> Mapping[str, int]:
    """Name of each stack that the tensors of a checkpoint make → how many experts it has."""
    found: dict[str, int] = {}
    for entry in entries:
        slot, fused = expert_slot(entry.name), expert_parts(entry.name)
        if slot is not None:
            name, index = slot
            found[name] = max(found.get(name, 0), index + 1)
        elif len(entry.shape) == 3:
            found[entry.name] = entry.shape[0]
            if fused is not None:
                found |= dict.fromkeys(fused[:3], entry.shape[0])
    return found


def _stack_names(plan: Blueprint, stack: Stack) -> dict[str, tuple[str, ...]]:
    """Part of a stack → the weights it is; a fused stack is two where plans split it."""
    own = {part: plan.own_names[names[0]] for part, names in stack.parts.items()}
    fused = expert_parts(own.get("gate_up_proj", ""))
    if fused is not None and _splits(plan.weights.entry(stack.parts["gate_up_proj"][0]).shape, own, plan):
        gate, up, down, _ = fused
        return {"gate_up_proj": (gate, up), "down_proj": (down,)}
    slots = {part: expert_slot(name) for part, name in own.items()}
    return {part: (own[part] if slot is None else slot[0],) for part, slot in slots.items()}


def _splits(shape: Shape, own: Mapping[str, str], plan: Blueprint) -> bool:
    """Whether plans take a fused stack [experts, 2·I, H] apart: not with biases, nor where H = I."""
    has_bias = f"{own['gate_up_proj']}_bias" in plan.own_names.values()
    return shape[1] % 2 == 0 and shape[1] // 2 != shape[2] and not has_bias

"""Where a checkpoint holds the expert stacks of a model: one tensor an expert, a stack a part, or fused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from quantry import FormatError, QuantizedTensor
from quantry_transformers.experts import ExpertsPacker

if TYPE_CHECKING:
    from quantry_transformers.weights import HfWeights

__all__ = ["Stack", "expert_stacks", "load_part"]

_PARTS = ("gate_proj", "up_proj", "down_proj")
_OLD_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}  # mixtral's names


@dataclass(frozen=True)
class Stack:
    """One expert module. parts: part → names of its weights in the file, one stack or one per expert."""

    path: str
    module: nn.Module
    parts: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> set[str]:
        """Every name of the checkpoint that it takes."""
        return {name for names in self.parts.values() for name in names}

    @property
    def parameters(self) -> set[str]:
        """The model's parameters that it gives values to."""
        return {f"{self.path}.{leaf}" for leaf, _ in self.module.named_parameters(recurse=False)}


def expert_stacks(model: nn.Module, weights: HfWeights) -> list[Stack]:
    """The expert modules whose weights the checkpoint holds under other names than the model's, or fused."""
    packer = ExpertsPacker()
    found = []
    for path, module in model.named_modules():
        wanted = packer.weights(module)
        if not wanted:
            continue
        experts = next(iter(module.parameters(recurse=False))).shape[0]
        parts = {part: names for part in _PARTS if (names := _names(path, part, experts, weights))}
        if set(parts) != set(_PARTS[0 if module.has_gate else 1 :]):
            parts = {part: (f"{path}.{part}",) for part in wanted if f"{path}.{part}" in weights}
        if parts:
            found.append(Stack(path, module, parts))
    return found


def load_part(weights: HfWeights, names: tuple[str, ...]) -> QuantizedTensor:
    """The stack [experts, N, K]. Raises FormatError naming an expert of another shape or type."""
    if len(names) == 1:
        return weights[names[0]]
    loaded = [weights[name] for name in names]
    first = loaded[0]
    for name, qt in zip(names, loaded, strict=True):
        if (qt.layout, qt.shape) != (first.layout, first.shape):
            raise FormatError(
                f"is {qt.layout} {list(qt.shape)}, expert 0 is {first.layout} {list(first.shape)}",
                file=weights.checkpoint.source.path,
                tensor=weights.stored_name(name),
            )
    buffers = {n: torch.stack([qt.buffers[n] for qt in loaded]) for n in first.buffers}
    return QuantizedTensor(first.layout, (len(loaded), *first.shape), buffers)


def _names(path: str, part: str, experts: int, weights: HfWeights) -> tuple[str, ...] | None:
    for names in _spellings(path, part, experts):
        if all(name in weights for name in names):
            return names
    return None


def _spellings(path: str, part: str, experts: int) -> Iterator[tuple[str, ...]]:
    yield (f"{path}.{part}.weight",)
    for leaf in (part, _OLD_PARTS[part]):
        yield tuple(f"{path}.{e}.{leaf}.weight" for e in range(experts))

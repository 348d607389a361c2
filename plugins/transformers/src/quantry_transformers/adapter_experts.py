"""Changes of expert stacks: of one expert each, or of a part that the model keeps fused with another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad

from quantry import LowRank
from quantry_transformers.experts import ExpertsPacker

__all__ = ["Expert", "expert_of", "fused", "stacked"]

_PART = re.compile(
    r"(?P<stem>.+\.experts)\.((?P<index>\d+)\.)?(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\Z"
)
_OLD_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # mixtral's names
_FUSED = ("gate_proj", "up_proj")  # in this order, one below the other


@dataclass(frozen=True, slots=True)
class Expert:
    """A part of a stack: its path, and the number of experts."""

    path: str
    count: int


def expert_of(stem: str, model: nn.Module) -> tuple[Expert | None, int | None, tuple[int, ...] | None]:
    """(stack, index, shape) of an expert's weight, index None for a whole stack; all None for other names.

    model: its expert modules still transformers' own.
    """
    nothing = None, None, None
    match = _PART.match(stem)
    if match is None:
        return nothing
    try:
        module = model.get_submodule(match["stem"])
    except AttributeError:
        return nothing
    part = _OLD_PARTS.get(match["part"], match["part"])
    weights = ExpertsPacker().weights(module)
    halved = part in _FUSED and "gate_up_proj" in weights
    if not weights or (part not in weights and not (halved and module.is_concatenated)):
        return nothing
    count, rows, columns = module.get_parameter("gate_up_proj" if halved else part).shape
    shape = (count, rows // 2 if halved else rows, columns)
    expert = Expert(f"{match['stem']}.{part}", count)
    if match["index"] is None:
        return expert, None, shape
    index = int(match["index"])
    return (expert, index, shape[1:]) if index < count else nothing


def stacked(expert: Expert, parts: Mapping[int, LowRank]) -> LowRank:
    """One change of the stack, nothing for experts that have none; ranks are filled up with zeros."""
    rank, first = max(part.rank for part in parts.values()), next(iter(parts.values()))
    a = torch.zeros(expert.count, rank, first.a.shape[-1])
    b = torch.zeros(expert.count, first.b.shape[-2], rank)
    for index, part in parts.items():
        a[index, : part.rank] = part.a
        b[index, :, : part.rank] = (part.b.double() * part.scale).float()
    return LowRank(a, b, 1.0)


def fused(path: str, parts: Sequence[LowRank]) -> tuple[str, list[LowRank]]:
    """Changes of gate_proj or up_proj [E, N, K] as ones of gate_up_proj [E, 2 N, K], and its path."""
    stem, _, part = path.rpartition(".")
    rows = (0, 0, 0, parts[0].b.shape[-2]) if part == "gate_proj" else (0, 0, parts[0].b.shape[-2], 0)
    return f"{stem}.gate_up_proj", [c._replace(b=pad(c.b, rows)) for c in parts]

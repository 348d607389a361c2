"""Fused stacks of experts under the names that UQFF has for them: gate and up apart, all rank 3.

mistral.rs stores `<…>.experts.gate_proj`, `.up_proj` and `.down_proj` whatever the source looked like
(uqff-format.md). transformers keeps gate and up in one stack `gate_up_proj` [E, 2·I, H], gate first, beside
`down_proj` [E, H, I] (integrations/moe.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from quantry.format import TensorEntry, WeightSource
from quantry.roles import expert_parts

if TYPE_CHECKING:
    from quantry.tensor import QuantizedTensor

__all__ = ["unfused"]


class _Part(NamedTuple):
    """`rows` rows of every expert of a tensor, from `first` on; None: all of them."""

    name: str
    first: int = 0
    rows: int | None = None


def unfused(source: WeightSource) -> WeightSource:
    """The source, its fused expert stacks split; itself where it has none."""
    entries = {entry.name: entry for entry in source.entries()}
    parts: dict[str, _Part] = {}
    for name, entry in entries.items():
        named = expert_parts(name)
        if named is None or not _is_concatenated(entry, entries, named[3]):
            continue
        gate, up, down, beside = named
        half = entry.shape[1] // 2
        parts |= {gate: _Part(name, 0, half), up: _Part(name, half, half), down: _Part(beside)}
    return _Unfused(source, entries, parts) if parts else source


def _is_concatenated(entry: TensorEntry, entries: dict[str, TensorEntry], beside: str) -> bool:
    """Whether the shapes are those of rows of outputs, which transposed stacks do not have; biases stay."""
    down = entries.get(beside)
    if down is None or len(entry.shape) != 3 or len(down.shape) != 3 or f"{entry.name}_bias" in entries:
        return False
    experts, double, hidden = entry.shape
    return double % 2 == 0 and down.shape == (experts, hidden, double // 2) and hidden != double // 2


class _Unfused:
    """A WeightSource with other names for parts of its stacks."""

    def __init__(
        self, source: WeightSource, entries: dict[str, TensorEntry], parts: dict[str, _Part]
    ) -> None:
        self._source, self._parts = source, parts
        taken = {part.name for part in parts.values()}
        listed = [entry for name, entry in entries.items() if name not in taken]
        for name, part in parts.items():
            whole = entries[part.name]
            shape = whole.shape if part.rows is None else (whole.shape[0], part.rows, whole.shape[2])
            listed.append(replace(whole, name=name, shape=shape, ops=("experts",)))
        self._entries = listed

    def entries(self) -> Sequence[TensorEntry]:
        """Every tensor, parts in place of the stacks they are cut from."""
        return self._entries

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        """The tensor, or a slice of its first dimension."""
        part = self._parts.get(name)
        if part is None:
            return self._source.load(name, rows)
        qt = self._source.load(part.name, rows)
        return qt if part.rows is None else qt.narrow(-2, part.first, part.rows)

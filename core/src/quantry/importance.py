"""Importance: how much each input column of a weight counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from quantry.errors import ShapeError, ValueDomainError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Importance",
    "ImportanceFormat",
    "check_importance",
]


@dataclass(frozen=True, slots=True)
class Importance:
    """Mean squared activation per input column, by weight.

    weights: name → float32 [K] or [experts, K], >= 0. counts: name → int64 [1] or [experts], tokens behind
    each mean; a matrix that saw none has importance 1 in every column. chunks, chunk_tokens: of the text
    it was collected over, 0 where unknown. datasets: names of the texts.
    Raises ShapeError, ValueDomainError naming the weight for values that are no importance.
    """

    weights: Mapping[str, Tensor]
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    chunks: int = 0
    chunk_tokens: int = 0
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in self.weights.items():
            check_importance(name, values)


class ImportanceFormat(ABC):
    """One kind of file that holds importance."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Of files to be written in this format, the dot included."""
    convention: ClassVar[str | None] = None
    """Whose names weights have in such files ("gguf"); None: those of the model."""

    @abstractmethod
    def detect(self, path: Path, head: bytes) -> bool:
        """Whether the file, which begins with `head`, is one of these."""

    @abstractmethod
    def read(self, path: Path) -> Importance:
        """What the file holds. Raises FormatError for a file that is damaged or lies."""

    @abstractmethod
    def write(self, path: Path, importance: Importance) -> None:
        """Write the file, whole or not at all; names are those of `convention` already."""


def check_importance(name: str, values: Tensor) -> None:
    """Raise ShapeError or ValueDomainError naming the weight for values that are no importance."""
    import torch

    if values.dim() not in (1, 2) or not values.is_floating_point():
        raise ShapeError(f"importance is a vector or one per expert, not {list(values.shape)} {values.dtype}",
                         tensor=name)  # fmt: skip
    wrong = ~(torch.isfinite(values) & (values >= 0))
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        place = f"expert {at[0]}, column {at[1]}" if len(at) == 2 else f"column {at[0]}"
        raise ValueDomainError(f"importance is {values[tuple(at)].item()} at {place}", tensor=name,
                               hint="It must be 0 or more. Collect it again: quantry imatrix.")  # fmt: skip

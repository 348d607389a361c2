"""Adapters: low-rank changes of a model's weights, kept apart from the packed weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry.errors import PluginError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Adapter", "AdapterFormat", "LowRank", "read_adapter"]


class LowRank(NamedTuple):
    """What is added to a weight [N, K]: scale · b · a. a [r, K], b [N, r]; stacks of experts have [E, …]."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """parts: weight name → change. convention: whose names these are ("gguf"); None: the model's own.

    architecture: of the model it was made for, as its file names it; None where the file does not say.
    """

    path: Path
    parts: Mapping[str, LowRank]
    convention: str | None = None
    architecture: str | None = None


class AdapterFormat(ABC):
    """One kind of adapter file or folder."""

    name: ClassVar[str]

    @abstractmethod
    def why_not(self, path: Path) -> str | None:
        """The sentence that says why `path` is none of these, or None when it is."""

    @abstractmethod
    def read(self, path: Path) -> Adapter:
        """The adapter. Raises FormatError, ShapeError naming file and tensor for one that is damaged or lies,
        UsageError for one that asks for what cannot be done beside packed weights."""


def read_adapter(path: str | Path) -> Adapter:
    """The adapter at `path`, of whatever installed format.

    Raises UsageError with each format's reason when none fits, PluginError when none is installed.
    """
    from quantry.plugins import registry

    path = Path(path)
    if not path.exists():
        raise UsageError("does not exist", file=path)
    formats = registry().adapter_formats
    if not formats:
        raise PluginError(
            "no installed plugin reads adapters", file=path, hint="pip install quantry-peft quantry-gguf"
        )
    reasons = []
    for fmt in formats:
        reason = fmt.why_not(path)
        if reason is None:
            return fmt.read(path)
        reasons.append(f"{fmt.name}: {reason}")
    raise UsageError("is no adapter of an installed format", file=path, hint="\n".join(reasons))

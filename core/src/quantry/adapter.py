"""Adapters: low-rank changes of a model's weights, kept apart from the packed weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry.errors import FormatError, PluginError, ShapeError, UsageError, ValueDomainError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Adapter", "AdapterFormat", "LowRank", "read_adapter"]


class LowRank(NamedTuple):
    """What is added to a weight [N, K]: scale · b · a. a [r, K], b [N, r]; stacks of experts have [E, …]."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def check(self, file: Path, names: tuple[str, str]) -> LowRank:
        """Itself. names: of a and b in the file, for the errors.

        Raises FormatError for halves that are no float matrices or stacks, ShapeError for unequal ranks or
        rank 0, ValueDomainError for NaN and Inf.
        """
        for half, name in zip((self.a, self.b), names, strict=True):
            if not half.is_floating_point() or half.dim() not in (2, 3):
                raise FormatError(
                    f"is {half.dtype} {list(half.shape)}, not a matrix of floats", file=file, tensor=name
                )
            if not half.isfinite().all():
                raise ValueDomainError("holds NaN or Inf", file=file, tensor=name)
        if self.a.shape[:-2] != self.b.shape[:-2] or self.rank != self.b.shape[-1] or not self.rank:
            a, b = list(self.a.shape), list(self.b.shape)
            problem = f"has shape {b}, its other half {a}: they share no rank"
            raise ShapeError(problem, file=file, tensor=names[1])
        return self


@dataclass(frozen=True, slots=True)
class Adapter:
    """parts: weight name → change. convention: whose names these are ("gguf"); None: the model's own.

    architecture: of the model it was made for, as its file names it; None where the file does not say.
    scale: of all parts, on top of each part's own.
    """

    path: Path
    parts: Mapping[str, LowRank]
    convention: str | None = None
    architecture: str | None = None
    scale: float = 1.0


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
    """The adapter at PATH or PATH=SCALE, of whatever installed format.

    Raises UsageError with each format's reason when none fits, PluginError when none is installed.
    """
    from quantry.plugins import registry

    path, scale = _scaled(path)
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
            return replace(fmt.read(path), scale=scale)
        reasons.append(f"{fmt.name}: {reason}")
    raise UsageError("is no adapter of an installed format", file=path, hint="\n".join(reasons))


def _scaled(given: str | Path) -> tuple[Path, float]:
    path, equals, number = str(given).rpartition("=")
    if not equals or Path(given).exists():
        return Path(given), 1.0
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UsageError(f"{number!r} is no scale", file=path, hint="Give PATH or PATH=SCALE, as lora=0.5.")
    return Path(path), scale

"""Importance of a model's weights: the mean square of what each input column is multiplied by."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import quantry
from quantry import Checkpoint, Importance, UsageError, ValueDomainError, role_of
from quantry_transformers.calibrate import calibrate
from quantry_transformers.runtime import TransformersRuntime, configured
from quantry_transformers.token_chunks import TextTooShort
from quantry_transformers.weight_names import expert_counts

__all__ = ["SquareSums", "collect_importance", "default_text"]

_DEFAULT_TEXT = "calibration.txt"


def collect_importance(
    model: str | Path | Checkpoint,
    text: str | None = None,
    *,
    chunks: int | None = None,
    chunk_tokens: int = 512,
    output_head: bool = True,
    device: str = "cpu",
    datasets: tuple[str, ...] = (),
    nameable: Collection[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    trust_remote_code: bool = False,
) -> Importance:
    """Mean squared activations of every linear layer, stack of experts and the output head, over a text.

    text: None takes the one that is shipped. output_head: a head that shares the embedding's weight stands
    under the embedding's name. datasets: names of the texts, kept beside the values. nameable: weights that
    the result can be written for; UsageError names the first other one when it is seen.
    Raises UsageError as `quantry.Runtime.calibrate` does, ValueDomainError naming the first weight whose
    input holds NaN or Inf.
    """
    checkpoint = model if isinstance(model, Checkpoint) else quantry.open(model)
    reason = TransformersRuntime().why_not(checkpoint)
    if reason is not None:
        raise UsageError(f"its model cannot be run: {reason}", file=checkpoint.source.path)
    if text is None:
        text, datasets = default_text(), (_DEFAULT_TEXT,)

    def takes(name: str) -> bool:
        if not output_head and role_of(name, (1, 1)) in ("head", "embedding"):
            return False
        if nameable is not None and name not in nameable:
            raise UsageError("files of this kind have no name for it", tensor=name,
                             hint="Write to a .safetensors or .cimatrix file.")  # fmt: skip
        return True

    sums = SquareSums(takes)
    try:
        done = calibrate(
            checkpoint, text, sums, chunks=chunks, chunk_tokens=chunk_tokens, device=device,
            progress=progress, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    except TextTooShort as e:
        e.file = ", ".join(datasets) or None
        raise
    _, weights = configured(checkpoint, trust_remote_code)
    means, counts = sums.means(expert_counts(weights.entries()))
    return Importance(means, counts, done.chunks, chunk_tokens, datasets)


def default_text() -> str:
    """The text that is shipped: prose, talk, code, numbers, several languages."""
    from importlib.resources import files

    return (files("quantry_transformers") / "text" / _DEFAULT_TEXT).read_text(encoding="utf-8")


@dataclass(slots=True)
class _Sum:
    squares: Tensor  # float64 [K]
    rows: int = 0


@dataclass(slots=True)
class _Sums:
    """Of a matrix, or of the experts of a stack that have been seen."""

    matrix: _Sum | None = None
    experts: dict[int, _Sum] = field(default_factory=dict)


class SquareSums:
    """An observer that sums squares by column, once for weights that share an input.

    A call's squares are added in float32, as torch adds rows, and calls in float64. takes: names that count.
    """

    def __init__(self, takes: Callable[[str], bool] = lambda name: True) -> None:
        self._takes = takes
        self._found: dict[tuple[str, ...], _Sums] = {}

    def __call__(self, names: Sequence[str], x: Tensor, experts: Tensor | None) -> None:
        """Raises ValueDomainError for NaN and Inf."""
        key = tuple(name for name in names if self._takes(name))
        if not key:
            return
        found = self._found.setdefault(key, _Sums())
        if experts is None:
            found.matrix = _added(found.matrix, x, key[0])
            return
        rows = torch.bincount(experts).tolist()
        ordered = x[experts.argsort(stable=True)]
        for expert, part in enumerate(ordered.split(rows)):
            if len(part):
                found.experts[expert] = _added(found.experts.get(expert), part, key[0])

    def means(self, experts: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(importance, counts) by name, as `quantry.Importance` has them. experts: how many a stack has."""
        weights: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for key, found in self._found.items():
            for name in key:
                sums = [found.matrix] if found.matrix else _in_order(found.experts, experts.get(name, 0))
                columns = next(s.squares.shape[0] for s in sums if s is not None)
                means = [torch.ones(columns) if s is None else (s.squares / s.rows).float() for s in sums]
                weights[name] = means[0] if found.matrix else torch.stack(means)
                counts[name] = torch.tensor([0 if s is None else s.rows for s in sums])
        return weights, counts


def _in_order(experts: Mapping[int, _Sum], count: int) -> list[_Sum | None]:
    return [experts.get(expert) for expert in range(max(count, max(experts) + 1))]


def _added(total: _Sum | None, x: Tensor, name: str) -> _Sum:
    squares = x.float().square().sum(0)
    if not math.isfinite(float(squares.sum())):
        squares = x.double().square().sum(0)  # squares of large numbers leave float32
        wrong = ~torch.isfinite(squares)
        if wrong.any():
            raise ValueDomainError(
                f"is multiplied by NaN or Inf at column {int(wrong.nonzero()[0])}", tensor=name,
                hint="A weight that comes before it is damaged, or too large for the type of activations.",
            )  # fmt: skip
    if total is None:
        total = _Sum(torch.zeros(x.shape[1], dtype=torch.float64))
    total.squares += squares.cpu()
    total.rows += len(x)
    return total

"""What all importance files share: numbers that no mean of squares can be are refused, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantry import Importance, ValueDomainError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["calls_of", "checked", "scaled"]


def checked(values: Tensor, name: str, file: Path) -> Tensor:
    """The values. Raises ValueDomainError at the first that is negative, NaN or infinite."""
    import torch

    wrong = ~(torch.isfinite(values) & (values >= 0))
    if wrong.any():
        at = int(wrong.view(-1).nonzero()[0])
        raise ValueDomainError(
            f"is {values.view(-1)[at].item()} at element {at}; importance is 0 or more",
            file=file, tensor=name, hint="Collect it again: quantry imatrix, or llama-imatrix.",
        )  # fmt: skip
    return values


def scaled(means: Tensor, factor: Tensor | int, name: str, file: Path) -> Tensor:
    """What a file stores of means: float32 on the CPU, times calls or counts. Raises as `checked` does."""
    return checked((means.detach().float().cpu() * factor).contiguous(), name, file)


def calls_of(importance: Importance, name: str) -> int:
    """How many chunks of the text a weight's mean is over; 1 where nothing is known."""
    counts = importance.counts.get(name)
    if counts is None or not importance.chunk_tokens:
        return max(1, importance.chunks)
    return max(1, -(-int(counts.max()) // importance.chunk_tokens))

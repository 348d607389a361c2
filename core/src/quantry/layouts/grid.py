"""Groups and blocks of a matrix: counting them, cutting axes into them, refusing what is not a matrix."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from quantry.errors import UsageError, nearest
from quantry.layout import Shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ceil_div", "check_choice", "matrix_why_not", "split_axis"]


def ceil_div(a: int, b: int) -> int:
    """How many pieces of size `b` cover `a`; the last may be short."""
    return -(-a // b)


def matrix_why_not(shape: Shape) -> str | None:
    """The sentence for a shape that does not end in (out_features, in_features), or None."""
    if len(shape) < 2:
        return f"it holds matrices (…, out_features, in_features), not {len(shape)} dimensions"
    if min(shape) < 0:
        return f"size {min(shape)} is negative"
    return None


def check_choice(cls: str, field: str, value: str, allowed: Collection[str]) -> None:
    """Raise UsageError, proposing the nearest, unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UsageError(f"{cls}: {field} {value!r} is unknown", hint=nearest(str(value), allowed))


def split_axis(values: Tensor, dim: int, size: int) -> Tensor:
    """Axis `dim` (negative) of length n cut into [ceil(n/size), size], a short last piece filled with zeros.

    >>> import torch
    >>> split_axis(torch.arange(1, 6), -1, 2).tolist()
    [[1, 2], [3, 4], [5, 0]]
    """
    import torch

    count = ceil_div(values.shape[dim], size)
    missing = count * size - values.shape[dim]
    if missing:
        values = torch.nn.functional.pad(values, (*(0, 0) * (-dim - 1), 0, missing))
    before, after = values.shape[:dim], values.shape[dim:][1:]
    return values.reshape(*before, count, size, *after)

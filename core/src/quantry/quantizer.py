"""Quantizers: named targets that turn a dense weight into a packed one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from quantry.tensor import QuantizedTensor

__all__ = ["Quantizer", "canonical_name"]


class Quantizer(ABC):
    """One ISQ type ("q4_k", "afq4")."""

    name: ClassVar[str]
    needs: ClassVar[Literal["none", "importance", "hessian", "inputs"]] = "none"
    """What `stats` must hold; "none": it works without."""
    takes_importance: ClassVar[bool] = False
    """Whether `stats` may hold an importance per column, which then weighs the search."""
    row_block: ClassVar[int | None] = 256
    """Rows that may be quantized alone with the same bytes; None when the rule needs the whole matrix."""
    fallback: ClassVar[tuple[str, ...]] = ()
    """Quantizers tried in order for a shape this one declines."""
    sensitive: ClassVar[str | None] = None
    """Quantizer used for embeddings and output heads when this one is asked for the model; None: itself."""
    width: ClassVar[int | None] = None
    """The `--isq` width (2, 3, 4, 5, 6, 8) this type stands for when a user names only a width."""
    priority: ClassVar[int] = 0
    """Order among quantizers of one width that are as fast and as accurate: higher first."""
    expected_error: ClassVar[float | None] = None
    """RMS of (weight - dequantized) over that of the weight, for normal weights; the kit measures it."""
    native_on: ClassVar[tuple[str, ...]] = ("cpu",)
    """Device types this type was made for: what a width means for a device that is not at hand."""

    @abstractmethod
    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """The sentence that says why a weight of this shape and source dtype cannot be quantized, or None."""

    @abstractmethod
    def layout_for(self, shape: Shape, dtype: str) -> Layout:
        """The layout that `quantize` returns, from the shape alone: sizes are known before any data."""

    @abstractmethod
    def quantize(self, weight: Tensor, layout: Layout, stats: Tensor | None = None) -> QuantizedTensor:
        """Pack a float weight [*, N, K]. stats: importance [K] or [experts, K] float32 >= 0 where `needs`
        says so.

        Raises ValueDomainError naming row and column of the first NaN or Inf, ShapeError where `why_not`
        speaks.
        """


def canonical_name(name: str) -> str:
    """The spelling under which quantizer names are compared: case, `_` and `-` do not matter.

    >>> canonical_name("Q4_K") == canonical_name("q4k")
    True
    """
    return name.casefold().replace("_", "").replace("-", "")

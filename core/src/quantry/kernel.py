"""What a kernel is, the problem it may decline, and how it rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from quantry.devices import DeviceInfo
from quantry.errors import KernelError
from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "BUCKETS",
    "BoundGroup",
    "BoundLinear",
    "BoundLowRank",
    "Kernel",
    "Numerics",
    "NumericsMode",
    "Op",
    "Problem",
    "bucket_index",
]

Op = Literal["linear", "linear_dx", "embedding", "experts"]
NumericsMode = Literal["exact", "strict", "fast"]
BoundLinear = Callable[["Tensor", "Tensor | None"], "Tensor"]
BoundGroup = Callable[["Tensor"], "list[Tensor]"]
BoundLowRank = Callable[["Tensor", "Sequence[Tensor]"], None]

BUCKETS = (1, 4, 16, 64, 256, 4096)
"""Row counts that a weight is resolved for; a call uses the smallest bucket that holds it, or the last."""


def bucket_index(rows: int) -> int:
    """Index into BUCKETS for a call with `rows` rows.

    >>> [BUCKETS[bucket_index(m)] for m in (0, 1, 2, 16, 17, 9999)]
    [1, 1, 4, 16, 64, 4096]
    """
    return min(bisect_left(BUCKETS, rows), len(BUCKETS) - 1)


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a kernel rounds; tests derive their tolerance from it.

    accumulate: type of the running sum. activations: "exact" = used as given; "int8/32" = rounded to int8
    with one scale per 32; "fp8" …. deterministic: equal inputs give equal bits on any thread count.
    """

    accumulate: Literal["f16", "f32", "f64", "i32"] = "f32"
    activations: str = "exact"
    deterministic: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing a kernel may be asked to run. `layout` is the layout the weight is stored in for this
    kernel."""

    op: Op
    layout: Layout
    shape: Shape
    rows: int
    dtype: str
    device: DeviceInfo
    numerics: NumericsMode = "strict"
    grad: bool = False

    def __str__(self) -> str:
        size = "x".join(str(n) for n in self.shape)
        rows = (
            ""
            if self.op == "embedding"
            else f", {self.rows} row{'' if self.rows == 1 else 's'} of {self.dtype}"
        )
        return f"{self.op} {self.layout} [{size}] on {self.device}{rows}, numerics {self.numerics}"


class Kernel(ABC):
    """One op on one layout family on one device type.

    `family` and `device` may be "*" (any). Buffers arrive as a sequence in the order of
    `layout.buffers(shape)`. Kernels are re-entrant: scratch is allocated per call.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    op: ClassVar[Op]
    family: ClassVar[str]
    device: ClassVar[str]
    priority: ClassVar[int] = 0
    """Order without measurement: higher is tried first."""
    reference: ClassVar[bool] = False
    """True for a slow path that takes part only where the caller permits it (`reference="allow"`)."""
    numerics: ClassVar[Numerics]

    def numerics_for(self, layout: Layout) -> Numerics:
        """How this kernel rounds on `layout`; the class attribute unless the rounding depends on the
        layout."""
        return self.numerics

    @abstractmethod
    def why_not(self, problem: Problem) -> str | None:
        """The sentence that says why this kernel cannot run `problem`, or None when it can."""

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """op "linear": x [*, K] → [*, N] in x's dtype, bias [N] or None."""
        raise KernelError(f"{self.name} does not implement linear")

    def bind(self, w: Sequence[Tensor], layout: Layout, shape: Shape) -> BoundLinear:
        """op "linear": `matmul` on one weight as a function of x and bias, for calls that come often.

        A kernel may prepare addresses and sizes once; it keeps `w` alive and is dropped when a buffer
        changes."""
        return lambda x, bias: self.matmul(x, w, layout, shape, bias)

    def bind_group(self, weights: Sequence[tuple[Sequence[Tensor], Layout, Shape]]) -> BoundGroup | None:
        """op "linear": several weights of one K as one function of x, a result each; None: call them one by
        one.

        Layouts may differ within what `why_not` admits. Kept and dropped as what `bind` returns."""
        return None

    def bind_low_rank(self, a: Tensor, bs: Sequence[Tensor]) -> BoundLowRank | None:
        """op "linear", family "dense": what adapters add, as one function of x and the y_i; None: torch adds.

        y_i [N_i] += (x aᵀ)_i b_i for one row x [K], contiguous f32 as the y_i are; a [ΣR_i, K],
        b_i [R_i, N_i]. Kept and dropped as what `bind` returns."""
        return None

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """op "linear_dx": dy [*, N] → dx [*, K], the backward of `matmul` to x."""
        raise KernelError(f"{self.name} does not implement linear_dx")

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """op "embedding": ids [*] int64 → rows [*, K] of `dtype`. Raises KernelError for an id outside
        0…N-1."""
        raise KernelError(f"{self.name} does not implement embedding")

    def experts(
        self, x: Tensor, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """op "experts": x [T, 1|k, K], ids [T, k], weight [E, N, K], bias [E, N] → [T, k, N]."""
        raise KernelError(f"{self.name} does not implement experts")

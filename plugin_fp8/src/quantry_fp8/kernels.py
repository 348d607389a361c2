"""The grouped CPU kernels, compiled for e4m3, e5m2 and, as f8q8, 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from quantry import Kernel, Layout, Numerics, Problem, Shape, panel_conversions, panel_kernels
from quantry_fp8.f8q8 import CONVERSIONS as F8Q8_CONVERSIONS, F8q8Panel, panels
from quantry_fp8.native import LIBRARY

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CONVERSIONS", "KERNELS"]


class F8q8Kernel(Kernel):
    """A kernel of 8-bit affine panels on those of f8q8, whose buffers are the same."""

    inner: ClassVar[Kernel]

    family = F8q8Panel.family
    device = "cpu"

    def why_not(self, problem: Problem) -> str | None:
        """What the inner kernel says."""
        return self.inner.why_not(replace(problem, layout=panels()))

    def numerics_for(self, layout: Layout) -> Numerics:
        """Those of the inner kernel."""
        return self.inner.numerics_for(panels())

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]."""
        return self.inner.matmul(x, w, panels(), shape, bias)

    def bind(
        self, w: Sequence[Tensor], layout: Layout, shape: Shape
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The same with everything but x and bias prepared."""
        return self.inner.bind(w, panels(), shape)

    def bind_group(
        self, weights: Sequence[tuple[Sequence[Tensor], Layout, Shape]]
    ) -> Callable[[Tensor], list[Tensor]] | None:
        """Weights of equal columns in one parallel region."""
        return self.inner.bind_group([(w, panels(), shape) for w, _, shape in weights])

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """dy [*, N] → dx [*, K]."""
        return self.inner.linear_dx(dy, w, panels(), shape)

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """ids [*] → rows [*, K]."""
        return self.inner.embedding(ids, w, panels(), shape, dtype)

    def experts(
        self, x: Tensor, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [T, 1|k, K], ids [T, k] → [T, k, N]."""
        return self.inner.experts(x, ids, w, panels(), shape, bias)


def _f8q8(inner: Kernel) -> Kernel:
    made: Kernel = type(f"F8q8{type(inner).__name__}", (F8q8Kernel,), {
        "inner": inner,
        "name": inner.name.replace("affine", "f8q8"),
        "op": inner.op,
        "priority": inner.priority,
        "numerics": inner.numerics,
        "__module__": __name__,
    })()  # fmt: skip
    return made


# 8-bit floats are close to no integers: kernels that round activations to int8 never take them
KERNELS = [
    *(kernel for kernel in panel_kernels(LIBRARY, "fp8", ("float",)) if not kernel.name.endswith("int8")),
    *(_f8q8(kernel) for kernel in panel_kernels(LIBRARY, "fp8", ("affine",))),
]
CONVERSIONS = [*panel_conversions(LIBRARY, ("affine", "float")), *F8Q8_CONVERSIONS]

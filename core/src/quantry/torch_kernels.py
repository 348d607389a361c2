"""Kernels made of torch's own ops: dense weights on any device, and experts as a loop over packed
matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantry.dtypes import dtype_name
from quantry.errors import KernelError, NoKernelError
from quantry.kernel import Kernel, Numerics, Problem, bucket_index
from quantry.layout import Layout, Shape
from quantry.policy import Policy, current_policy
from quantry.resolve import resolve
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["DenseEmbedding", "DenseLinear", "DenseLinearDx", "ExpertsLoop"]

# torch splits sums by the number of threads, so bits depend on it
_EXACT = Numerics(accumulate="f32", activations="exact", deterministic=False)


class DenseLinear(Kernel):
    """`F.linear` on a dense weight whose dtype is that of the activations."""

    name, op, family, device, numerics = "torch.linear", "linear", "dense", "*", _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """Declines a weight of another dtype: casting it would make a second, wider copy."""
        stored = next(iter(problem.layout.buffers(problem.shape).values())).dtype
        if stored != problem.dtype:
            return (
                f"the weight is {stored}, activations are {problem.dtype}: torch multiplies equal types only"
            )
        return None

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """torch's own product."""
        from torch.nn import functional as F

        return F.linear(x, w[0], None if bias is None else bias.to(x.dtype))


class DenseLinearDx(Kernel):
    """The backward of DenseLinear to x."""

    name, op, family, device, numerics = "torch.linear_dx", "linear_dx", "dense", "*", _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """As DenseLinear."""
        return DenseLinear().why_not(problem)

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """dy @ W."""
        return dy @ w[0]


class DenseEmbedding(Kernel):
    """Row lookup in a dense table; only the looked-up rows are cast."""

    name, op, family, device, numerics = "torch.embedding", "embedding", "dense", "*", _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """Never declines."""
        return None

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """Raises KernelError for an id outside the table."""
        from torch.nn import functional as F

        try:
            return F.embedding(ids, w[0]).to(dtype)
        except IndexError as e:
            raise KernelError(f"embedding id outside 0…{shape[-2] - 1}") from e


class ExpertsLoop(Kernel):
    """Each used expert's rows in turn through the fastest linear kernel of its packed matrix."""

    name, op, family, device, numerics, priority = "core.experts_loop", "experts", "*", "*", _EXACT, -100

    def why_not(self, problem: Problem) -> str | None:
        """Declines where one expert's matrix has no linear kernel."""
        if len(problem.shape) != 3:
            return f"needs a stack [experts, N, K], got {list(problem.shape)}"
        policy = Policy(problem.numerics, reference=current_policy().reference)
        try:
            resolve(
                problem.layout,
                problem.shape[1:],
                ("linear",),
                problem.dtype,
                problem.device,
                policy,
                keep_storage=True,
            )
        except NoKernelError as e:
            return (
                f"no linear kernel for one expert: {e.candidates[0][1] if e.candidates else problem.layout}"
            )
        return None

    def experts(
        self, x: Tensor, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [T, 1|k, K], ids [T, k] → [T, k, N]."""
        import torch

        count, n, _ = shape
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= count):
            raise KernelError(f"expert id outside 0…{count - 1}")
        stack = QuantizedTensor(layout, shape, dict(zip(layout.buffers(shape), w, strict=True)))
        wide = x.expand(*ids.shape, x.shape[-1])
        y = x.new_empty((*ids.shape, n))
        policy = current_policy()
        for e in torch.unique(ids).tolist():
            mask = ids == e
            rows = wide[mask]
            one = QuantizedTensor(layout, shape[1:], {name: b[e] for name, b in stack.buffers.items()})
            found = resolve(
                layout,
                shape[1:],
                ("linear",),
                dtype_name(x.dtype),
                x.device,
                policy,
                keep_storage=True,
                rows=len(rows),
            )
            kernel = found.kernels["linear", bucket_index(len(rows))]
            y[mask] = kernel.matmul(
                rows, list(one.buffers.values()), layout, shape[1:], None if bias is None else bias[e]
            )
        return y

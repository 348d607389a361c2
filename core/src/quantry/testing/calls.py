"""The four ops as a suite calls them: random inputs, the kernel's answer, float64's, the bound between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from quantry.dtypes import torch_dtype
from quantry.kernel import Kernel, Numerics, Problem
from quantry.layout import Shape
from quantry.tensor import QuantizedTensor
from quantry.testing.tolerance import product_bound, rounding

__all__ = ["CALLS", "Call"]


class Call(ABC):
    """One op: `given` is a tuple of the tensors before the weight, `bias` comes last or is None."""

    has_bias: ClassVar[bool] = False
    shapes: ClassVar[tuple[Shape, ...]]

    @abstractmethod
    def draw(self, problem: Problem, seed: int) -> tuple[Tensor, ...]:
        """Random inputs of the problem's rows and dtype."""

    @abstractmethod
    def run(
        self, kernel: Kernel, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None
    ) -> Tensor:
        """What the kernel answers."""

    @abstractmethod
    def expected(self, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        """The answer in float64, without bias; dense is the float64 weight."""

    @abstractmethod
    def bound(self, given: tuple[Tensor, ...], dense: Tensor, numerics: Numerics) -> Tensor:
        """How far the kernel's sums may be off, before it rounds its result."""

    @abstractmethod
    def op_args(self, given: tuple[Tensor, ...], qt: QuantizedTensor, pin: str) -> tuple[Any, ...]:
        """Arguments of the torch op."""

    def lead(self, given: tuple[Tensor, ...], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The first input with its rows folded into several dimensions."""
        first, *rest = given
        return (first.view(*shape, *first.shape[1:]), *rest)


class Linear(Call):
    """y = x Wᵀ."""

    has_bias = True
    shapes = tuple((n, k) for k in (32, 96, 256, 1024, 31, 72, 2080) for n in (1, 16, 17, 33))

    def draw(self, problem: Problem, seed: int) -> tuple[Tensor, ...]:
        return (_activations((problem.rows, problem.shape[-1]), problem.dtype, seed),)

    def run(
        self, kernel: Kernel, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None
    ) -> Tensor:
        return kernel.matmul(given[0], list(qt.buffers.values()), qt.layout, qt.shape, bias)

    def expected(self, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        return given[0].double() @ dense.T

    def bound(self, given: tuple[Tensor, ...], dense: Tensor, numerics: Numerics) -> Tensor:
        flat = given[0].double().reshape(-1, dense.shape[1])
        return product_bound(flat, dense, numerics).view(*given[0].shape[:-1], dense.shape[0])

    def op_args(self, given: tuple[Tensor, ...], qt: QuantizedTensor, pin: str) -> tuple[Any, ...]:
        return (*given, list(qt.buffers.values()), str(qt.layout), list(qt.shape), None, pin)


class LinearDx(Linear):
    """dx = dy W."""

    has_bias = False

    def draw(self, problem: Problem, seed: int) -> tuple[Tensor, ...]:
        return (_activations((problem.rows, problem.shape[-2]), problem.dtype, seed),)

    def run(
        self, kernel: Kernel, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None
    ) -> Tensor:
        return kernel.linear_dx(given[0], list(qt.buffers.values()), qt.layout, qt.shape)

    def expected(self, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        return given[0].double() @ dense

    def bound(self, given: tuple[Tensor, ...], dense: Tensor, numerics: Numerics) -> Tensor:
        return super().bound(given, dense.T, numerics)

    def op_args(self, given: tuple[Tensor, ...], qt: QuantizedTensor, pin: str) -> tuple[Any, ...]:
        return (*given, list(qt.buffers.values()), str(qt.layout), list(qt.shape), pin)


class Embedding(Call):
    """Rows of the table."""

    shapes = tuple((n, k) for k in (32, 256, 1024, 31, 72) for n in (1, 16, 17, 40))

    def draw(self, problem: Problem, seed: int) -> tuple[Tensor, ...]:
        n = problem.shape[-2]
        ids = torch.randint(0, n, (12,), generator=torch.Generator().manual_seed(seed))
        ids[:3] = torch.tensor([0, n - 1, n - 1])  # both ends, and a repetition
        return ids, torch.empty(0, dtype=torch_dtype(problem.dtype))

    def run(
        self, kernel: Kernel, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None
    ) -> Tensor:
        return kernel.embedding(given[0], list(qt.buffers.values()), qt.layout, qt.shape, given[1].dtype)

    def expected(self, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        return dense[given[0]]

    def bound(self, given: tuple[Tensor, ...], dense: Tensor, numerics: Numerics) -> Tensor:
        return torch.zeros_like(dense[given[0]])  # a lookup only rounds to the result's dtype

    def op_args(self, given: tuple[Tensor, ...], qt: QuantizedTensor, pin: str) -> tuple[Any, ...]:
        return given[0], list(qt.buffers.values()), str(qt.layout), list(qt.shape), given[1].dtype, pin


class Experts(Call):
    """Each row through the matrices its ids name; two ids a row."""

    has_bias = True
    shapes = tuple((e, n, k) for k in (32, 256, 1024, 72) for n in (16, 17) for e in (1, 5))

    def draw(self, problem: Problem, seed: int) -> tuple[Tensor, ...]:
        tokens = max(problem.rows // 2, 1)
        ids = torch.randint(0, problem.shape[0], (tokens, 2), generator=torch.Generator().manual_seed(seed))
        return _activations((tokens, 1 + seed % 2, problem.shape[-1]), problem.dtype, seed), ids

    def run(
        self, kernel: Kernel, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None
    ) -> Tensor:
        x, ids = given
        return kernel.experts(x, ids, list(qt.buffers.values()), qt.layout, qt.shape, bias)

    def expected(self, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        x, ids = given
        wide = x.double().expand(*ids.shape, x.shape[-1])
        return torch.einsum("tjk,tjnk->tjn", wide, dense[ids])

    def bound(self, given: tuple[Tensor, ...], dense: Tensor, numerics: Numerics) -> Tensor:
        x, ids = given
        wide = x.double().expand(*ids.shape, x.shape[-1])
        rows = [
            torch.stack(
                [product_bound(wide[t, j][None], dense[ids[t, j]], numerics)[0] for j in range(ids.shape[1])]
            )
            for t in range(len(ids))
        ]
        return torch.stack(rows)

    def op_args(self, given: tuple[Tensor, ...], qt: QuantizedTensor, pin: str) -> tuple[Any, ...]:
        return (*given, list(qt.buffers.values()), str(qt.layout), list(qt.shape), None, pin)

    def lead(self, given: tuple[Tensor, ...], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        return given  # tokens are one dimension by contract


CALLS: Mapping[str, Call] = {
    "linear": Linear(),
    "linear_dx": LinearDx(),
    "embedding": Embedding(),
    "experts": Experts(),
}


def total_bound(y: Tensor, plain: Tensor, sums: Tensor, dtype: torch.dtype) -> Tensor:
    """`sums` and the rounding of the result, once before and once after a bias is added."""
    return sums + rounding(y, dtype) + rounding(plain, dtype)


def _activations(shape: Shape, dtype: str, seed: int) -> Tensor:
    """Normal numbers, one in 64 of them twenty times as large: real activations have such outliers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    loud = torch.rand(shape, generator=generator) < 1 / 64
    return torch.where(loud, 20 * x, x).to(torch_dtype(dtype))

"""Slow kernels that run every layout on any device, one tile of rows at a time; only where the caller permits
them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from quantry.errors import KernelError
from quantry.kernel import Kernel, Numerics, Problem
from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ReferenceEmbedding", "ReferenceLinear", "ReferenceLinearDx"]

TILE_BYTES = 4 << 20  # float32 bytes of one dequantized tile

# torch splits sums by the number of threads, so bits depend on it
_EXACT = Numerics(accumulate="f32", activations="exact", deterministic=False)


class ReferenceLinear(Kernel):
    """Dequantize a tile of out_features to float32, multiply, next tile. Float32 in between, x's dtype
    out."""

    name, op, family, device = "reference", "linear", "*", "*"
    priority, reference, numerics = -1000, True, _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """Declines private packings, and matrices that can only be dequantized whole."""
        return _why_not(problem)

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """Peak memory above the result: one tile and one float32 copy of x."""
        import torch
        from torch.nn import functional as F

        wide = x.float()
        parts = [F.linear(wide, tile) for _, tile in _tiles(w, layout, shape)]
        y = torch.cat(parts, -1) if parts else wide.new_zeros((*x.shape[:-1], shape[-2]))
        return (y if bias is None else y + bias.float()).to(x.dtype)


class ReferenceLinearDx(Kernel):
    """The backward to x of ReferenceLinear, tile by tile."""

    name, op, family, device = "reference.dx", "linear_dx", "*", "*"
    priority, reference, numerics = -1000, True, _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """As ReferenceLinear."""
        return _why_not(problem)

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """dy [*, N] → dx [*, K], summed in float32."""
        wide = dy.float()
        dx = wide.new_zeros((*dy.shape[:-1], shape[-1]))
        for start, tile in _tiles(w, layout, shape):
            dx += wide.narrow(-1, start, tile.shape[0]) @ tile
        return dx.to(dy.dtype)


class ReferenceEmbedding(Kernel):
    """Dequantize the distinct rows that are looked up, a run of neighbours at a time."""

    name, op, family, device = "reference.embedding", "embedding", "*", "*"
    priority, reference, numerics = -1000, True, _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """Declines private packings and layouts whose rows cannot be taken alone."""
        if problem.layout.step(-2) != 1:
            return f"single rows of {problem.layout} cannot be dequantized"
        return _why_not(problem)

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """Raises KernelError for an id outside 0…N-1."""
        import torch

        if ids.numel() == 0:
            return torch.empty((*ids.shape, shape[-1]), dtype=dtype, device=ids.device)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= shape[-2]:
            raise KernelError(f"embedding id {low if low < 0 else high} is outside 0…{shape[-2] - 1}")
        named = dict(zip(layout.buffers(shape), w, strict=True))
        distinct, inverse = torch.unique(ids, return_inverse=True)
        rows = []
        for start, length in _runs(distinct.tolist()):
            part = layout.narrow(named, shape, -2, start, length)
            rows.append(layout.dequantize({n: b.contiguous() for n, b in part.items()}, (length, shape[-1])))
        return torch.cat(rows).to(dtype)[inverse]


def _why_not(problem: Problem) -> str | None:
    if not problem.layout.storable:
        return f"{problem.layout} is a private packing of kernels"
    if len(problem.shape) != 2:
        return f"takes one matrix, not shape {list(problem.shape)}"
    if problem.layout.step(-2) is None and 4 * problem.shape[0] * problem.shape[1] > TILE_BYTES:
        return f"{problem.layout} cannot be cut by rows, and the whole matrix is more than one tile"
    return None


def _tiles(w: Sequence[Tensor], layout: Layout, shape: Shape) -> Iterator[tuple[int, Tensor]]:
    """(first row, float32 [rows, K]) for tiles of at most TILE_BYTES, at least one step."""
    n, k = shape
    named = dict(zip(layout.buffers(shape), w, strict=True))
    step = layout.step(-2)
    if step is None:
        yield 0, layout.dequantize(named, shape)
        return
    rows = max(TILE_BYTES // (4 * max(k, 1)) // step, 1) * step
    for start in range(0, n, rows):
        length = min(rows, n - start)
        part = layout.narrow(named, shape, -2, start, length)
        yield start, layout.dequantize({name: b.contiguous() for name, b in part.items()}, (length, k))


def _runs(ids: list[int]) -> Iterator[tuple[int, int]]:
    """(start, length) of each run of consecutive numbers in a sorted list."""
    start = previous = ids[0]
    for i in ids[1:]:
        if i != previous + 1:
            yield start, previous - start + 1
            start = i
        previous = i
    yield start, previous - start + 1

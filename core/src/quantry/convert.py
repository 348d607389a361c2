"""Exact rewrites of one layout as another, and the shortest way between two."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from quantry.dtypes import torch_dtype
from quantry.errors import ShapeError
from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from quantry.tensor import QuantizedTensor

__all__ = ["Conversion", "convert", "reachable"]

RUN_BYTES = 8 << 20  # source bytes that `convert(…, release=…)` rewrites at a time


class Conversion(ABC):
    """An edge between two layout families that changes bytes and never a number.

    `dequantize(convert(t, target)) == dequantize(t)` bit for bit; the conformance kit checks it.
    """

    source: ClassVar[str]
    target: ClassVar[str]

    @abstractmethod
    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The layout this conversion makes of `layout`, or None when it would not be exact or is not
        defined."""

    @abstractmethod
    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Rewrite `qt` in `target`, which came from `target_for`."""


def reachable(layout: Layout, shape: Shape) -> dict[Layout, tuple[Conversion, ...]]:
    """Every layout that at most two exact conversions lead to, with the way there; `layout` itself by ()."""
    from quantry.plugins import registry

    edges = registry().conversions
    ways: dict[Layout, tuple[Conversion, ...]] = {layout: ()}
    frontier = [layout]
    for _ in range(2):
        found: list[Layout] = []
        for here in frontier:
            for edge in edges:
                if edge.source != here.family:
                    continue
                there = edge.target_for(here, shape)
                if there is not None and there not in ways:
                    ways[there] = (*ways[here], edge)
                    found.append(there)
        frontier = found
    return ways


Release = Callable[["Tensor"], None]


def convert(qt: QuantizedTensor, target: Layout | str, *, release: Release | None = None) -> QuantizedTensor:
    """`qt` in the layout `target`, by the shortest exact way. Raises ShapeError when there is none.

    release: is told each source buffer that has been rewritten; a large matrix is then worked through in runs
    of rows, so that source and result need not be in memory together.
    """
    from quantry.plugins import registry

    goal = registry().layout(target) if isinstance(target, str) else target
    ways = reachable(qt.layout, qt.shape)
    if goal not in ways:
        known = ", ".join(str(layout) for layout in ways if layout != qt.layout) or "none"
        raise ShapeError(f"no exact conversion from {qt.layout} to {goal}; reachable: {known}")
    for edge in ways[goal]:
        step = edge.target_for(qt.layout, qt.shape)
        assert step is not None  # reachable() just built this way
        rows = None if release is None else _run_of_rows(qt, step)
        if release is None or rows is None:
            made = edge.convert(qt, step)
        else:
            made = _by_rows(edge, qt, step, rows, release)
        if release is not None:
            for buffer in qt.buffers.values():
                release(buffer)
        qt = made
    return qt


def _run_of_rows(qt: QuantizedTensor, target: Layout) -> int | None:
    """Rows to convert at a time; None where the matrix is small or one of the layouts has no rows to cut."""
    steps = (qt.layout.step(-2), target.step(-2))
    if len(qt.shape) != 2 or qt.nbytes <= RUN_BYTES or None in steps:
        return None
    step = math.lcm(*(s for s in steps if s is not None))
    return max(RUN_BYTES * qt.shape[0] // qt.nbytes // step, 1) * step


def _by_rows(
    edge: Conversion, qt: QuantizedTensor, target: Layout, rows: int, release: Release
) -> QuantizedTensor:
    import torch

    from quantry.tensor import QuantizedTensor

    made = {
        name: torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device=qt.device)
        for name, spec in target.buffers(qt.shape).items()
    }
    for start in range(0, qt.shape[0], rows):
        length = min(rows, qt.shape[0] - start)
        part = qt.narrow(-2, start, length)
        place = target.narrow(made, qt.shape, -2, start, length)
        for name, buffer in edge.convert(part, target).buffers.items():
            place[name].copy_(buffer)
        for buffer in part.buffers.values():
            release(buffer)
    return QuantizedTensor(target, qt.shape, made)

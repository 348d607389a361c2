"""Exact rewrites of one layout as another, and the shortest way between two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from quantry.errors import ShapeError
from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    from quantry.tensor import QuantizedTensor

__all__ = ["Conversion", "convert", "reachable"]


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


def convert(qt: QuantizedTensor, target: Layout | str) -> QuantizedTensor:
    """`qt` in the layout `target`, by the shortest exact way. Raises ShapeError when there is none."""
    from quantry.plugins import registry

    goal = registry().layout(target) if isinstance(target, str) else target
    ways = reachable(qt.layout, qt.shape)
    if goal not in ways:
        known = ", ".join(str(layout) for layout in ways if layout != qt.layout) or "none"
        raise ShapeError(f"no exact conversion from {qt.layout} to {goal}; reachable: {known}")
    here = qt.layout
    for edge in ways[goal]:
        step = edge.target_for(here, qt.shape)
        assert step is not None  # reachable() just built this way
        qt, here = edge.convert(qt, step), step
    return qt

"""What a peer is: a library, the weights it makes of a layout's width, and a call for each row count."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from quantry.kernel import NumericsMode
from quantry.layout import Layout, Shape

__all__ = ["Call", "Peer", "PeerWeight", "group_of", "load", "width_of"]

Call = Callable[[int], object]
"""Runs one copy of a weight."""


@dataclass(frozen=True)
class PeerWeight:
    """A weight in a peer's own form, not made yet.

    kernel: what distinguishes it within the peer. layout: in the words of the peer. activations: how it
    rounds them. unit: the peak it is held against. nbytes: of one copy, as the peer stores it. make(count):
    so many copies, ready to give a call for a number of rows. most_rows: where it is too slow to wait for
    more. most_copies: where a copy costs more than its memory.
    """

    kernel: str
    layout: str
    activations: str
    numerics: NumericsMode
    dtype: str
    unit: str
    nbytes: int
    make: Callable[[int], Callable[[int], Call]]
    most_rows: int | None = None
    most_copies: int | None = None


class Peer(ABC):
    """One library. `modules` are imported by name at first use: none is a dependency of quantry."""

    name: ClassVar[str]
    dist: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    install: ClassVar[str]

    def why_not(self) -> str | None:
        """The sentence that says what to install, or None."""
        if all(importlib.util.find_spec(module) for module in self.modules):
            return None
        return f"{self.name} is not installed: {self.install}"

    @abstractmethod
    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """What the library has for weights as wide as those of `layout`; equal `kernel` and `layout` texts
        of two layouts mean the same weight, which is benched once."""


def load(module: str) -> Any:
    """A peer's module."""
    return importlib.import_module(module)


def width_of(layout: Layout) -> int:
    """Bits of a code, scales left out: 4 for q4_k as for nf4."""
    bits = getattr(layout, "bits", None)
    return int(bits) if bits is not None else int(8 * layout.nbytes((256, 1024)) / (256 * 1024))


def group_of(layout: Layout) -> int:
    """Weights that share a scale; 32 where the layout does not say it in one number."""
    return int(getattr(layout, "group", 32))

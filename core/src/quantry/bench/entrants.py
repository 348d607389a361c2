"""Who takes part: kernels that can run a layout, and peers with weights of its width."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantry.bench.peers.peer import Call, Peer, PeerWeight
from quantry.bench.protocol import Rotation, Subject
from quantry.dtypes import torch_dtype
from quantry.errors import NoKernelError, QuantryError
from quantry.kernel import Kernel, NumericsMode
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import current_policy
from quantry.resolve import resolve
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Entrant", "KernelEntrants", "PeerEntrants", "Stock", "copies_of"]

LEAST_COPIES, MOST_COPIES = 4, 256
_CACHE_BYTES = 32 << 20  # where the system does not say


@dataclass(frozen=True, eq=False)
class Entrant:
    """A subject and what its row says beside the figures."""

    subject: Subject
    kernel: str
    peer: str | None
    layout: str
    storage: str
    numerics: str
    activations: str
    dtype: str
    chosen: bool


@dataclass(frozen=True, eq=False)
class Stock:
    """Copies of one weight in one storage, shared by all kernels that read it."""

    storage: Layout
    shape: Shape
    weights: tuple[QuantizedTensor, ...]
    rotation: Rotation

    @property
    def nbytes(self) -> int:
        """Of one copy."""
        return self.weights[0].nbytes


def copies_of(nbytes: int) -> int:
    """How many copies of a weight are four times what the last cache holds, at least 4, at most 256."""
    return min(max(LEAST_COPIES, -(-4 * _last_cache() // max(nbytes, 1))), MOST_COPIES)


@functools.cache
def _last_cache() -> int:
    for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"), reverse=True):
        text = path.read_text().strip()
        if text[:-1].isdecimal() and text[-1] in "KM":
            return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
    return _CACHE_BYTES


class KernelEntrants:
    """The kernels for one layout and shape; their weights are made once and serve every row count."""

    def __init__(self, layout: Layout, shape: Shape, device: str, failed: Callable[[str], None]) -> None:
        self.layout, self.shape, self.device, self.failed = layout, shape, device, failed
        self._broken: set[tuple[str, str]] = set()
        self.refusal: NoKernelError | None = None
        self._stocks: dict[Layout, Stock] = {}

    def at(self, m: int, dtype: str, modes: Sequence[NumericsMode], every: bool = True) -> list[Entrant]:
        """Entrants for m rows of `dtype`, each under the first of `modes` that admits it.

        every: all that can run, not only those that the resolver chooses. Empty where none can; `refusal`
        then says why.
        """
        found: dict[tuple[str, str], Entrant] = {}
        refusal: NoKernelError | None = None
        for mode in modes:
            policy = replace(current_policy(), numerics=mode)
            try:
                decision = resolve(
                    self.layout, self.shape, ("linear",), dtype, self.device, policy, rows=m, partial=True
                )
            except NoKernelError as e:
                refusal = e
                continue
            for c in decision.candidates:
                key = c.kernel, c.storage
                if not (c.ok and (every or c.chosen)) or key in found or key in self._broken:
                    continue
                try:
                    found[key] = self._entrant(*key, m, dtype, mode, c.chosen)
                except QuantryError as e:  # the others are still worth their times
                    self._broken.add(key)
                    self.failed(f"{c.kernel} on {c.storage} failed: {e}")
        self.refusal = None if found else refusal
        return list(found.values())

    def _entrant(
        self, name: str, storage: str, m: int, dtype: str, mode: NumericsMode, chosen: bool
    ) -> Entrant:
        import torch

        kernel = next(k for k in registry().kernels if k.name == name)
        stock = self._stock(registry().layout(storage))
        n, k = self.shape
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
        calls = _bound(kernel, stock, x.to(self.device, torch_dtype(dtype)))
        activations = kernel.numerics_for(stock.storage).activations
        unit = "int8" if activations.startswith("int8") else "bf16" if dtype == "bf16" else "f32"
        calls(0)
        subject = Subject(
            f"{name} {self.layout} m={m}", calls, stock.rotation, stock.nbytes, 2 * m * n * k, unit
        )
        return Entrant(subject, name, None, str(self.layout), storage, mode, activations, dtype, chosen)

    def _stock(self, storage: Layout) -> Stock:
        if storage not in self._stocks:
            qt = QuantizedTensor(self.layout, self.shape, self.layout.sample(self.shape)).to(self.device)
            count = copies_of(storage.nbytes(self.shape))
            # converted each on its own: a copy made by cloning would lie in other pages than a real weight
            weights = tuple(
                qt.convert(storage)
                if storage != self.layout
                else QuantizedTensor(storage, self.shape, {name: b.clone() for name, b in qt.buffers.items()})
                for _ in range(count)
            )
            self._stocks[storage] = Stock(storage, self.shape, weights, Rotation(count))
        return self._stocks[storage]


def _bound(kernel: Kernel, stock: Stock, x: Tensor) -> Callable[[int], object]:
    bound = [kernel.bind(list(w.buffers.values()), stock.storage, stock.shape) for w in stock.weights]
    return lambda i: bound[i](x, None)


class PeerEntrants:
    """Weights of every peer for a set of layouts, each made once, when it is first needed."""

    def __init__(
        self,
        peers: Iterable[Peer],
        layouts: Iterable[Layout],
        shape: Shape,
        threads: int,
        failed: Callable[[str], None],
    ) -> None:
        self.shape, self.failed = shape, failed
        self._weights: dict[tuple[str, str, str], PeerWeight] = {}
        self._made: dict[tuple[str, str, str], tuple[Callable[[int], Call], Rotation]] = {}
        for peer in peers:
            for layout in layouts:
                for w in peer.weights(layout, shape, threads):
                    self._weights.setdefault((peer.name, w.kernel, w.layout), w)

    @property
    def nbytes(self) -> int:
        """Of all copies."""
        return sum(w.nbytes * _count(w) for w in self._weights.values())

    def at(self, m: int) -> list[Entrant]:
        """Entrants for m rows. One that fails is reported and left out: its interfaces are not ours."""
        found = []
        for key, w in list(self._weights.items()):
            if w.most_rows is not None and m > w.most_rows:
                continue
            try:
                found.append(self._entrant(key, w, m))
            except Exception as e:
                del self._weights[key]
                self.failed(f"{' '.join(key)} failed: {type(e).__name__}: {e}")
        return found

    def _entrant(self, key: tuple[str, str, str], w: PeerWeight, m: int) -> Entrant:
        if key not in self._made:
            count = _count(w)
            self._made[key] = w.make(count), Rotation(count)
        at, rotation = self._made[key]
        call = at(m)
        call(0)
        n, k = self.shape
        subject = Subject(" ".join((*key, f"m={m}")), call, rotation, w.nbytes, 2 * m * n * k, w.unit)
        return Entrant(
            subject, w.kernel, key[0], w.layout, w.layout, w.numerics, w.activations, w.dtype, False
        )


def _count(w: PeerWeight) -> int:
    return min(copies_of(w.nbytes), w.most_copies or MOST_COPIES)

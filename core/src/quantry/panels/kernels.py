"""CPU kernels on panels: linear, experts, the backward to x, embedding, for every grouped family.

Activations are f32, f16 or bf16, any strides between rows; results have their dtype and are contiguous.
Equal inputs give equal bits on any number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from ctypes import Array, addressof, c_int64, c_void_p
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quantry.kernel import BoundGroup, BoundLinear, Kernel, Numerics, Problem
from quantry.layout import Layout, Shape
from quantry.layouts import AffinePanel, CodebookPanel, FloatPanel
from quantry.layouts.panel import PanelLayout
from quantry.native import NativeLibrary
from quantry.panels.abi import KERNELS, GroupedWeight, describe, int8_block, panel_layout
from quantry.panels.conversions import FAMILIES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["panel_kernels"]

_EXACT = Numerics(accumulate="f32", activations="exact", deterministic=True)
_BAD_TYPE = 2  # quantry/status.h

Weights = Sequence[tuple[Sequence["Tensor"], Layout, Shape]]


def panel_kernels(library: NativeLibrary, prefix: str, families: Sequence[str] = FAMILIES) -> list[Kernel]:
    """Kernels on the panels of each family by the functions `<library's prefix>_grouped_…`.

    Names are `<prefix>.<family>_int8`, `_exact`, `_experts_int8`, `_experts_exact`, `_dx`, `_embedding`. What
    the library was compiled without is declined with a sentence. Together with `panel_conversions` this is
    all that a plugin of such a format says about CPUs.
    """
    library.declare(KERNELS)
    return [
        type(base.__name__, (base,), {
            "library": library,
            "name": f"{prefix}.{family}_{base.suffix}",
            "family": f"{family}_panel",
            "__module__": __name__,
        })()
        for family in families
        for base in (PanelInt8, PanelExact, ExpertsInt8, ExpertsExact, PanelDx, PanelEmbedding)
    ]  # fmt: skip


class _Panel(Kernel):
    """What all have in common."""

    library: ClassVar[NativeLibrary]
    suffix: ClassVar[str]
    exact: ClassVar[bool] = True
    dimensions: ClassVar[int] = 2

    device = "cpu"
    priority = 10
    numerics = _EXACT

    def why_not(self, problem: Problem) -> str | None:
        """None for f32, f16 or bf16 activations and a weight that the library was compiled for."""
        reason = self.library.dtype_reason(problem.dtype)
        if reason is not None:
            return reason
        if len(problem.shape) != self.dimensions:
            stack = "one matrix at a time, not a stack of them"
            return stack if self.dimensions == 2 else "a stack of matrices [experts, N, K] only"
        layout = panel_layout(problem.layout)
        reason = _group_reason(layout, problem.shape[-1])
        if reason is None and not self.exact:
            reason = _int8_reason(layout)
        reason = reason or self.library.why_not()
        if reason is None and not _compiled(self.library, self.library.target(), layout):
            reason = f"{self.library.dist} was compiled without kernels for {layout}"
        return reason

    def numerics_for(self, layout: Layout) -> Numerics:
        """Exact, or int8 per 32, 64 or 128 columns."""
        return self.numerics if self.exact else _int8_numerics(int8_block(panel_layout(layout)))

    def weight(self, w: Sequence[Tensor], layout: Layout, shape: Shape) -> _Weight:
        """The weight as native code takes it; the same buffers make the same description."""
        target, panel = self.library.target(), panel_layout(layout)
        if isinstance(panel, AffinePanel) and panel.perm:  # its content was checked: not for good
            return _described(self.library, target, self.exact, panel, shape, w)
        key = (self.library, target, self.exact, panel, shape, tuple(buffer.data_ptr() for buffer in w))
        found = _known.get(key)
        if found is None:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            found = _known[key] = _described(self.library, target, self.exact, panel, shape, w)
        return found

    def fail(self, status: int, layout: Layout, shape: Shape, what: str) -> None:
        """Raise the error of a status."""
        self.library.fail(status, f"{self.name} on {layout} {list(shape)}, {what}")


class _Weight(NamedTuple):
    """One weight as native code takes it, and what Python asks about it."""

    library: NativeLibrary
    run: Callable[..., int]  # grouped_linear
    address: int  # of `described`
    k: int
    n: int
    needs: dict[tuple[int, int], int]  # (rows, threads) → bytes of scratch
    described: GroupedWeight
    listed: Array[c_void_p]  # the address as a list of one weight
    what: str
    held: tuple[Tensor, ...] = ()  # the addresses in `described` are good as long as these live


_MOST_KNOWN = 4096
_MOST_NEEDS = 64
_known: dict[tuple[Any, ...], _Weight] = {}


def _described(
    library: NativeLibrary, target: int, exact: bool, layout: PanelLayout, shape: Shape, w: Sequence[Tensor]
) -> _Weight:
    names = layout.buffers(shape)
    described = describe(target, exact, layout, shape, dict(zip(names, w, strict=True)))
    address = addressof(described)
    run, listed = library.function("grouped_linear"), (c_void_p * 1)(address)
    what = f"{layout} {list(shape)}"
    return _Weight(library, run, address, shape[-1], shape[-2], {}, described, listed, what)


def _multiply(weight: _Weight, x: Tensor, bias: Tensor | None) -> Tensor:
    library, run, described, k, n, needs, _, listed, what, _ = weight
    x, m, stride = library.rows_of(x, k)
    threads = library.threads()
    room = needs.get((m, threads))
    if room is None:
        room = _room(library, needs, listed, 1, m, threads)
    scratch = _bytes(room) if room else None
    y = x.new_empty((m, n) if x.dim() == 2 else (*x.shape[:-1], n))
    if bias is not None:
        bias = bias.float().contiguous()
    dtypes = library.DTYPES
    status = run(
        described, dtypes[x.dtype], m, x.data_ptr(), stride, None if bias is None else bias.data_ptr(),
        y.data_ptr(), threads, None if scratch is None else scratch.data_ptr(), room,
    )  # fmt: skip
    if status:
        library.fail(status, f"linear on {what}, {m} rows of {x.dtype}")
    return y


class _Group(NamedTuple):
    """Weights of equal columns that one call multiplies x by."""

    weights: tuple[_Weight, ...]
    listed: Array[c_void_p]
    needs: dict[tuple[int, int], int]


def _multiply_group(group: _Group, x: Tensor) -> list[Tensor]:
    weights, listed, needs = group
    library, count = weights[0].library, len(weights)
    x, m, stride = library.rows_of(x, weights[0].k)
    threads = library.threads()
    room = needs.get((m, threads))
    if room is None:
        room = _room(library, needs, listed, count, m, threads)
    scratch = _bytes(room)
    ys = [x.new_empty((*x.shape[:-1], w.n)) for w in weights]
    to = (c_void_p * count)(*(y.data_ptr() for y in ys))
    status = library.function("grouped_linear_list")(
        addressof(listed), count, library.DTYPES[x.dtype], m, x.data_ptr(), stride, None, addressof(to),
        threads, scratch.data_ptr(), room,
    )  # fmt: skip
    if status:
        library.fail(status, f"linear on {', '.join(w.what for w in weights)}, {m} rows of {x.dtype}")
    return ys


def _room(
    library: NativeLibrary,
    needs: dict[tuple[int, int], int],
    listed: Array[c_void_p],
    count: int,
    m: int,
    threads: int,
) -> int:
    need = c_int64()
    status = library.function("grouped_scratch_list")(addressof(listed), count, m, threads, addressof(need))
    if status:
        library.fail(status, f"scratch of {count} weights, {m} rows")
    if len(needs) >= _MOST_NEEDS:
        needs.clear()
    needs[m, threads] = need.value
    return need.value


class _PanelLinear(_Panel):
    op = "linear"

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]."""
        return _multiply(self.weight(w, layout, shape), x, bias)

    def bind(self, w: Sequence[Tensor], layout: Layout, shape: Shape) -> BoundLinear:
        """The same with everything but x and bias prepared; `w` stays alive with it."""
        return partial(_multiply, self.weight(w, layout, shape)._replace(held=tuple(w)))

    def bind_group(self, weights: Weights) -> BoundGroup | None:
        """Weights of equal columns in one parallel region; layouts may differ."""
        if not weights or any(shape[1] != weights[0][2][1] for _, _, shape in weights):
            return None
        bound = tuple(self.weight(w, layout, shape)._replace(held=tuple(w)) for w, layout, shape in weights)
        return partial(
            _multiply_group, _Group(bound, (c_void_p * len(bound))(*(w.address for w in bound)), {})
        )


class PanelInt8(_PanelLinear):
    """Activations rounded to int8 per group, integer dot products, f32 between groups."""

    suffix = "int8"
    exact = False
    priority = 20


class PanelExact(_PanelLinear):
    """Activations as given, products and sums in f32."""

    suffix = "exact"


class _PanelExperts(_Panel):
    op = "experts"
    dimensions = 3

    def experts(
        self, x: Tensor, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [T, 1|k, K], ids [T, k] → [T, k, N]."""
        count, n, k = shape
        tokens, slots = ids.shape
        shared = x.shape[1] != slots or slots == 1
        x, _, stride = self.library.rows_of(x.reshape(-1, x.shape[-1]), k)
        weight, library = self.weight(w, layout, shape), self.library
        threads, ids = library.threads(), ids.long().contiguous()
        scratch, room = library.scratch("grouped_experts", weight.address, count, tokens, slots, threads)
        if bias is not None:
            bias = bias.float().contiguous()
        y = x.new_empty((tokens, slots, n))
        status = library.function("grouped_experts")(
            weight.address, count, library.DTYPES[x.dtype], tokens, slots, shared, x.data_ptr(), stride,
            ids.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), threads,
            scratch.data_ptr(), room,
        )  # fmt: skip
        if status:
            self.fail(status, layout, shape, f"ids {library.span(ids)}")
        return y


class ExpertsInt8(_PanelExperts):
    """PanelInt8 for each expert: all threads work on one expert at a time, in one parallel region."""

    suffix = "experts_int8"
    exact = False
    priority = 20


class ExpertsExact(_PanelExperts):
    """PanelExact for each expert."""

    suffix = "experts_exact"


class PanelDx(_Panel):
    """The backward to x on the same panels, exact."""

    op = "linear_dx"
    suffix = "dx"

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """dy [*, N] → dx [*, K]."""
        n, k = shape
        dy, m, stride = self.library.rows_of(dy, n)
        weight, library = self.weight(w, layout, shape), self.library
        threads = library.threads()
        scratch, room = library.scratch("grouped_dx", weight.address, m, threads)
        dx = dy.new_empty((*dy.shape[:-1], k))
        status = library.function("grouped_dx")(
            weight.address, library.DTYPES[dy.dtype], m, dy.data_ptr(), stride, dx.data_ptr(), threads,
            scratch.data_ptr(), room,
        )  # fmt: skip
        if status:
            self.fail(status, layout, shape, f"{m} rows of {dy.dtype}")
        return dx


class PanelEmbedding(_Panel):
    """Rows of a packed table, as numbers."""

    op = "embedding"
    suffix = "embedding"

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """ids [*] → rows [*, K]."""
        ids = ids.long().contiguous()
        y = ids.new_empty((*ids.shape, shape[-1]), dtype=dtype)
        weight, library = self.weight(w, layout, shape), self.library
        status = library.function("grouped_embedding")(
            weight.address,
            library.DTYPES[dtype],
            ids.data_ptr(),
            ids.numel(),
            y.data_ptr(),
            library.threads(),
        )
        if status:
            self.fail(status, layout, shape, f"ids {library.span(ids)}")
        return y


def _group_reason(layout: PanelLayout, columns: int) -> str | None:
    if isinstance(layout, AffinePanel) and layout.axis == "out":
        return None
    group = layout.block[1] if isinstance(layout, FloatPanel) else layout.group  # type: ignore[attr-defined]
    if group % 16 == 0 or group >= columns:
        return None
    return f"groups of {group} columns are no multiple of 16"


def _int8_reason(layout: PanelLayout) -> str | None:
    if isinstance(layout, AffinePanel):
        return 'scales across rows (axis "out") take exact activations only' if layout.axis == "out" else None
    if isinstance(layout, CodebookPanel):
        return "the numbers of fp4 are not close to 8-bit integers" if layout.table == "fp4" else None
    element = layout.element  # type: ignore[attr-defined]
    return None if element == "e2m1" else f"{element} numbers are no integers: activations stay as given"


@functools.cache
def _compiled(library: NativeLibrary, target: int, layout: PanelLayout) -> bool:
    """Whether the library has code for this kind of weight: asked with one of no rows and no columns."""
    empty = describe(target, True, layout, (0, 0), {})
    empty.offset = addressof(empty)  # never read, and asked for where scales are nested
    return library.function("grouped_check")(addressof(empty)) != _BAD_TYPE


@functools.cache
def _int8_numerics(block: int) -> Numerics:
    return Numerics(accumulate="i32", activations=f"int8/{block}", deterministic=True)


def _bytes(size: int) -> Tensor:
    import torch

    return torch.empty(size, dtype=torch.uint8)

"""CPU kernels of ggml's block types: linear, its backward and embedding on panels, dense 16-bit weights.

Activations are f32, f16 or bf16, any strides between rows; results have their dtype and are contiguous.
Equal inputs give equal bits on any number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from ctypes import Array, addressof, c_void_p
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry import Kernel, Layout, Numerics, Problem
from quantry_gguf import low_rank, native
from quantry_gguf.panel import PLANES
from quantry_gguf.types import TYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantry import Shape

__all__ = ["KERNELS"]

_IDS = {t.name: t.id for t in TYPES if not t.is_dense}
_STACK_COLUMNS = 8192  # ggml/linear.h, kStackColumns: one row of at most so many columns needs no scratch

_SERIAL_BYTES = 100 << 10  # threads.h, kSerialBytes: below it one row is computed by one thread

_EXACT = Numerics(accumulate="f32", activations="exact", deterministic=True)
_PER_32 = Numerics(accumulate="i32", activations="int8/32", deterministic=True)
_PER_256 = Numerics(accumulate="i32", activations="int8/256", deterministic=True)


class _Native(Kernel):
    """What the native kernels have in common."""

    device = "cpu"
    numerics = _EXACT
    dimensions: ClassVar[int] = 2
    unpacked: ClassVar[bool] = False
    """Takes only types that have no panel packing, which would be faster."""

    def why_not(self, problem: Problem) -> str | None:
        """None for weights of `dimensions` and f32, f16 or bf16 activations, when the library is there."""
        kind = str(problem.layout).partition(":")[2] if self.unpacked else ""
        if kind in PLANES:
            return f"{kind} is multiplied as ggml_panel:{kind}, its packing"
        reason, found = native.dtype_reason(problem.dtype), len(problem.shape)
        if reason is None and found != self.dimensions:
            stack = f"a stack of matrices [experts, N, K] only, not {found} dimensions"
            reason = "one matrix at a time, not a stack of them" if self.dimensions == 2 else stack
        return reason or native.why_not()


def _published(layout: Layout) -> Numerics:
    """ggml's own rounding: int8 per 256 columns for K types, per 32 for the others."""
    return _PER_256 if "int8/256" in layout.published_activations else _PER_32


class _PanelLinear(_Native):
    op = "linear"
    family = "ggml_panel"
    exact: ClassVar[int]

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]."""
        weight = _weight(native.target(), _id(layout), self.exact, *shape, *_planes(w))
        return _multiply(weight, x, bias)

    def bind(
        self, w: Sequence[Tensor], layout: Layout, shape: Shape
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The same with everything but x and bias prepared; `w` stays alive with it."""
        weight = _weight(native.target(), _id(layout), self.exact, *shape, *_planes(w))
        return partial(_multiply, weight._replace(held=tuple(w)))

    def bind_group(
        self, weights: Sequence[tuple[Sequence[Tensor], Layout, Shape]]
    ) -> Callable[[Tensor], list[Tensor]] | None:
        """Weights of equal columns in one parallel region; the types may differ."""
        if not weights or any(shape[1] != weights[0][2][1] for _, _, shape in weights):
            return None
        bound = tuple(
            _weight(native.target(), _id(layout), self.exact, *shape, *_planes(w))._replace(held=tuple(w))
            for w, layout, shape in weights
        )
        listed = (c_void_p * len(bound))(*(w.address for w in bound))
        return partial(_multiply_group, _Group(bound, listed, tuple(w.n for w in bound)))


class _Weight(NamedTuple):
    """One weight as native code takes it, and what Python asks about it."""

    run: Callable[..., int]
    address: int  # of `described`
    k: int
    n: int
    serial: bool  # one row is too little work for a second thread
    described: native.BoundLinear
    listed: Array[c_void_p]  # the address as a list of one weight
    held: tuple[Tensor, ...] = ()  # the addresses in `described` are good as long as these live


@functools.lru_cache(maxsize=4096)
def _weight(
    target: int, kind: int, exact: int, n: int, k: int, codes: int, high: int | None, meta: int, size: int
) -> _Weight:
    """By addresses: the same ones make the same description, whoever holds them."""
    described = native.BoundLinear(target, kind, exact, 0, n, k, codes, high, meta, size)
    run, address = native.library().quantry_gguf_linear_one, addressof(described)
    return _Weight(run, address, k, n, size < _SERIAL_BYTES, described, (c_void_p * 1)(address))


def _multiply(weight: _Weight, x: Tensor, bias: Tensor | None) -> Tensor:
    run, described, k, n, serial, full, listed, _ = weight
    if k and x.is_contiguous() and x.size(-1) == k:
        m, stride = x.numel() // k, k
    else:
        x, m, stride = native.rows_of(x, k)
    scratch, address, room = None, None, 0
    if m > 1 or k > _STACK_COLUMNS:
        threads = native.threads()
        scratch, room = native.scratch("linear", addressof(listed), 1, m, threads)
        address = scratch.data_ptr()
    else:
        threads = 1 if serial else native.threads()
    y = x.new_empty((m, n) if x.dim() == 2 else (*x.shape[:-1], n))
    if bias is None:
        offset = None
    else:
        bias = bias if native.DTYPES[bias.dtype] == 0 else bias.float()
        offset = bias.data_ptr()
    kind = native.DTYPES[x.dtype]
    status = run(described, kind, m, x.data_ptr(), stride, offset, y.data_ptr(), threads, address, room)
    if status:
        native.fail(status, f"linear [{n}x{k}] of ggml type {full.type}, {m} rows of {x.dtype}")
    return y


class _Group(NamedTuple):
    """Weights of equal columns that one call multiplies x by."""

    weights: tuple[_Weight, ...]
    listed: Array[c_void_p]
    columns: tuple[int, ...]  # of the results


def _multiply_group(group: _Group, x: Tensor) -> list[Tensor]:
    weights, listed, columns = group
    k, count = weights[0].k, len(weights)
    x, m, stride = native.rows_of(x, k)
    threads = native.threads()
    scratch, address, room = None, None, 0
    if m > 1 or k > _STACK_COLUMNS:
        scratch, room = native.scratch("linear", addressof(listed), count, m, threads)
        address = scratch.data_ptr()
    lead = x.shape[:-1]
    ys = [x.new_empty((*lead, n)) for n in columns]
    to = (c_void_p * count)(*(y.data_ptr() for y in ys))
    status = native.library().quantry_gguf_linear(
        addressof(listed), count, native.DTYPES[x.dtype], m, x.data_ptr(), stride, None, addressof(to),
        threads, address, room,
    )  # fmt: skip
    if status:
        native.fail(status, f"linear {list(columns)} x {k}, {m} rows of {x.dtype}")
    return ys


class PanelInt8(_PanelLinear):
    """ggml's own arithmetic: activations rounded to int8, integer dot products, f32 between blocks."""

    name = "gguf.panel_int8"
    exact = 0
    priority = 20
    numerics = _PER_256

    def numerics_for(self, layout: Layout) -> Numerics:
        """int8 per 256 columns for K types, per 32 for the others."""
        return _published(layout)


class PanelExact(_PanelLinear):
    """Activations as given, products and sums in f32."""

    name = "gguf.panel_exact"
    exact = 1
    priority = 10


class _PanelExperts(_Native):
    op = "experts"
    family = "ggml_panel"
    dimensions = 3
    exact: ClassVar[int]

    def experts(
        self, x: Tensor, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [T, 1|k, K], ids [T, k] → [T, k, N]."""
        count, n, k = shape
        tokens, slots = ids.shape
        shared = x.shape[1] != slots or slots == 1
        x, _, stride = native.rows_of(x.reshape(-1, x.shape[-1]), k)
        codes, high, meta, size = _planes(w)
        weight = _weight(
            native.target(), _id(layout), self.exact, n, k, codes, high, meta, size // count if count else 0
        )
        threads, ids = native.threads(), ids.long().contiguous()
        scratch, room = native.scratch("experts", weight.address, count, tokens, slots, threads)
        if bias is not None:
            bias = bias.float().contiguous()
        y = x.new_empty((tokens, slots, n))
        status = native.library().quantry_gguf_experts(
            weight.address, count, native.DTYPES[x.dtype], tokens, slots, shared, x.data_ptr(), stride,
            ids.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), threads,
            scratch.data_ptr(), room,
        )  # fmt: skip
        if status:
            native.fail(status, f"{self.name} on {layout} {list(shape)}, ids {native.span(ids)}")
        return y


class PanelExpertsInt8(_PanelExperts):
    """PanelInt8 for each expert: all threads work on one expert at a time, in one parallel region."""

    name = "gguf.experts_int8"
    exact = 0
    priority = 20
    numerics = _PER_256

    def numerics_for(self, layout: Layout) -> Numerics:
        """As PanelInt8."""
        return _published(layout)


class PanelExpertsExact(_PanelExperts):
    """PanelExact for each expert."""

    name = "gguf.experts_exact"
    exact = 1
    priority = 10


class PanelLinearDx(_Native):
    """The backward to x on the same panels, exact."""

    name = "gguf.panel_dx"
    op = "linear_dx"
    family = "ggml_panel"
    priority = 10

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """dy [*, N] → dx [*, K]."""
        n, k = shape
        dy, m, stride = native.rows_of(dy, n)
        target, threads = native.target(), native.threads()
        scratch, size = native.scratch("linear_dx", target, m, n, threads)
        dx = dy.new_empty((*dy.shape[:-1], k))
        status = native.library().quantry_gguf_linear_dx(
            target, _id(layout), native.DTYPES[dy.dtype], m, n, k, dy.data_ptr(), stride,
            *_planes(w), dx.data_ptr(), threads, scratch.data_ptr(), size,
        )  # fmt: skip
        if status:
            native.fail(status, f"{self.name} on {layout} [{n}x{k}], {m} rows of {dy.dtype}")
        return dx


class PanelEmbedding(_Native):
    """Rows of a packed table: a row is one lane of each cell of its panel."""

    name = "gguf.panel_embedding"
    op = "embedding"
    family = "ggml_panel"
    priority = 10

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """ids [*] → rows [*, K]."""
        return _look_up(self.name, "embedding", _planes(w), ids, layout, shape, dtype)


class RowsEmbedding(_Native):
    """Rows of a table in file order: an untied embedding needs no packing, its pages stay in the file."""

    name = "gguf.rows_embedding"
    op = "embedding"
    family = "ggml"
    priority = 20

    def embedding(
        self, ids: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        """ids [*] → rows [*, K]."""
        return _look_up(
            self.name, "embedding_rows", (w[0].data_ptr(), w[0].nbytes), ids, layout, shape, dtype
        )


class Dense16(_Native):
    """f16 and bf16 weights widened without loss, f32 sums; file order, as a packing would save nothing."""

    name = "gguf.dense16"
    op = "linear"
    family = "dense"
    priority = 10

    def why_not(self, problem: Problem) -> str | None:
        """None for f16 and bf16 weights."""
        kind = problem.layout.buffers(())["weight"].dtype
        if kind not in ("f16", "bf16"):
            return f"f16 and bf16 weights only, not {kind}"
        return super().why_not(problem)

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]."""
        n, k = shape
        x, m, stride = native.rows_of(x, k)
        weight, dtype, target = w[0], native.DTYPES[x.dtype], native.target()
        scratch, size = (None, 0) if dtype == 0 else native.scratch("dense", target, dtype, m, k)
        y = x.new_empty((m, n) if x.dim() == 2 else (*x.shape[:-1], n))
        if bias is not None and native.DTYPES[bias.dtype] != 0:
            bias = bias.float()
        status = native.library().quantry_gguf_dense(
            target, native.DTYPES[weight.dtype], dtype, m, n, k, x.data_ptr(), stride,
            weight.data_ptr(), weight.nbytes, None if bias is None else bias.data_ptr(), y.data_ptr(),
            native.threads(), None if scratch is None else scratch.data_ptr(), size,
        )  # fmt: skip
        if status:
            native.fail(status, f"{self.name} on {layout} [{n}x{k}], {m} rows of {x.dtype}")
        return y

    def bind_low_rank(
        self, a: Tensor, bs: Sequence[Tensor]
    ) -> Callable[[Tensor, Sequence[Tensor]], None] | None:
        """Both products and the sum in one parallel region, for f32."""
        return low_rank.bind_low_rank(a, bs)


def _look_up(
    name: str,
    function: str,
    table: tuple[int | None, ...],
    ids: Tensor,
    layout: Layout,
    shape: Shape,
    dtype: torch.dtype,
) -> Tensor:
    """Rows of a table by a native function; `table`: its buffers' addresses and bytes as that takes them."""
    n, k = shape
    ids = ids.contiguous()
    y = ids.new_empty((*ids.shape, k), dtype=dtype)
    status = getattr(native.library(), f"quantry_gguf_{function}")(
        native.target(), _id(layout), native.DTYPES[dtype], ids.data_ptr(), ids.numel(), n, k,
        *table, y.data_ptr(), native.threads(),
    )  # fmt: skip
    if status:
        native.fail(status, f"{name} on {layout} [{n}x{k}], ids {native.span(ids)}")
    return y


def _id(layout: Layout) -> int:
    return _IDS[layout.type]  # type: ignore[attr-defined]  # no isinstance on the path of every call


def _planes(w: Sequence[Tensor]) -> tuple[int, int | None, int, int]:
    """Addresses of codes, high and meta, and the bytes of all."""
    high = w[1].data_ptr() if len(w) == 3 else None
    return w[0].data_ptr(), high, w[-1].data_ptr(), sum(b.numel() for b in w)


KERNELS: list[Kernel] = [
    PanelInt8(),
    PanelExact(),
    PanelExpertsInt8(),
    PanelExpertsExact(),
    PanelLinearDx(),
    PanelEmbedding(),
    RowsEmbedding(),
    Dense16(),
]

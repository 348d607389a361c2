"""The torch ops behind every packed module, and the table that finds their kernel at run time.

Schemas carry no defaults: the dispatcher drops trailing defaults and `register_autograd` with `Tensor[]` then
fails in backward. `pin` is a policy as text (`str(Policy)`), so overrides and numerics survive compilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from quantry.dtypes import dtype_name
from quantry.errors import KernelError, NoKernelError, QuantryError
from quantry.kernel import Kernel, Op, bucket_index
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import Policy, applied
from quantry.resolve import resolve
from quantry.tensor import QuantizedTensor

__all__ = ["embedding", "experts", "linear", "linear_train", "unwatched"]

_lib = torch.library.Library("quantry", "DEF")
_lib.define("linear(Tensor x, Tensor[] w, str layout, SymInt[] shape, Tensor? bias, str pin) -> Tensor")
_lib.define("linear_train(Tensor x, Tensor[] w, str layout, SymInt[] shape, Tensor? bias, str pin) -> Tensor")
_lib.define("linear_dx(Tensor dy, Tensor[] w, str layout, SymInt[] shape, str pin) -> Tensor")
_lib.define(
    "embedding(Tensor ids, Tensor[] w, str layout, SymInt[] shape, ScalarType dtype, str pin) -> Tensor"
)
_lib.define(
    "experts(Tensor x, Tensor ids, Tensor[] w, str layout, SymInt[] shape, Tensor? bias, str pin) -> Tensor"
)

# (op, layout, shape, …) → its registry, kernel, storage, and the storage again where it is another layout
_kernels: dict[tuple[Any, ...], tuple[Any, Kernel, Layout, Layout | None]] = {}
_repacked = WeakIdKeyDictionary()  # first buffer of an unprepared weight → its buffers in the storage chosen


def _run(
    op: Op, dtype: torch.dtype, rows: int, w: Sequence[Tensor], layout: str, shape: Sequence[int], pin: str
) -> tuple[Kernel, Sequence[Tensor], Layout]:
    """(kernel, buffers, storage) for one call; buffers differ from `w` for an unprepared module only."""
    where = w[0].device
    key = (op, layout, tuple(shape), dtype, where, bucket_index(rows), pin or Policy.parse(""))
    hit = _kernels.get(key)
    if hit is None or hit[0] is not registry():
        kernel, storage = _find(op, dtype, rows, where, layout, tuple(shape), pin)
        hit = _kernels[key] = (registry(), kernel, storage, None if str(storage) == layout else storage)
    _, kernel, storage, other = hit
    if other is not None:
        w = _repack(w, layout, tuple(shape), other)
    return kernel, w, storage


def _find(
    op: Op, dtype: torch.dtype, rows: int, where: torch.device, text: str, shape: Shape, pin: str
) -> tuple[Kernel, Layout]:
    layout, policy = registry().layout(text), Policy.parse(pin)
    index = 0 if op == "embedding" else bucket_index(rows)
    name = dtype_name(dtype)
    try:
        decision = resolve(layout, shape, (op,), name, where, policy, keep_storage=True, rows=rows)
    except NoKernelError:
        # an unprepared module still holds the file's layout; a private packing has no other way out
        if not layout.storable:
            raise
        decision = resolve(layout, shape, (op,), name, where, policy, rows=rows)
    return decision.kernels[op, index], decision.storage


def _repack(w: Sequence[Tensor], text: str, shape: Shape, storage: Layout) -> Sequence[Tensor]:
    known = _repacked.get(w[0])
    if known is None or known[0] != storage:
        layout = registry().layout(text)
        qt = QuantizedTensor(layout, shape, dict(zip(layout.buffers(shape), w, strict=True))).convert(storage)
        known = _repacked[w[0]] = (storage, list(qt.buffers.values()))
    buffers: list[Tensor] = known[1]
    return buffers


def _call(kernel: Kernel, method: str, *args: Any) -> Tensor:
    try:
        result: Tensor = getattr(kernel, method)(*args)
    except QuantryError:
        raise
    except Exception as e:
        raise KernelError(
            f"kernel {kernel.name} failed: {type(e).__name__}: {e}",
            hint=f"QUANTRY_DISABLE={kernel.name} takes it out; nothing is retried on another kernel.",
        ) from e
    return result


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def _linear(
    x: Tensor, w: Sequence[Tensor], layout: str, shape: Sequence[int], bias: Tensor | None, pin: str
) -> Tensor:
    kernel, w, storage = _run("linear", x.dtype, _rows(x), w, layout, shape, pin)
    return _call(kernel, "matmul", x, w, storage, tuple(shape), bias)


def _linear_dx(dy: Tensor, w: Sequence[Tensor], layout: str, shape: Sequence[int], pin: str) -> Tensor:
    kernel, w, storage = _run("linear_dx", dy.dtype, _rows(dy), w, layout, shape, pin)
    return _call(kernel, "linear_dx", dy, w, storage, tuple(shape))


def _embedding(
    ids: Tensor, w: Sequence[Tensor], layout: str, shape: Sequence[int], dtype: torch.dtype, pin: str
) -> Tensor:
    kernel, w, storage = _run("embedding", dtype, 1, w, layout, shape, pin)
    return _call(kernel, "embedding", ids, w, storage, tuple(shape), dtype)


def _experts(
    x: Tensor,
    ids: Tensor,
    w: Sequence[Tensor],
    layout: str,
    shape: Sequence[int],
    bias: Tensor | None,
    pin: str,
) -> Tensor:
    kernel, w, storage = _run("experts", x.dtype, ids.numel(), w, layout, shape, pin)
    with applied(Policy.parse(pin)):  # a composite kernel resolves its parts under the same policy
        return _call(kernel, "experts", x, ids, w, storage, tuple(shape), bias)


for _name, _impl in {
    "linear": _linear,
    "linear_train": _linear,
    "linear_dx": _linear_dx,
    "embedding": _embedding,
    "experts": _experts,
}.items():
    _lib.impl(_name, _impl, "CompositeExplicitAutograd")


@torch.library.register_fake("quantry::linear", lib=_lib)
def _fake_linear(x: Tensor, w: Any, layout: str, shape: Any, bias: Any, pin: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[-2]))


@torch.library.register_fake("quantry::linear_train", lib=_lib)
def _fake_linear_train(x: Tensor, w: Any, layout: str, shape: Any, bias: Any, pin: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[-2]))


@torch.library.register_fake("quantry::linear_dx", lib=_lib)
def _fake_linear_dx(dy: Tensor, w: Any, layout: str, shape: Any, pin: str) -> Tensor:
    return dy.new_empty((*dy.shape[:-1], shape[-1]))


@torch.library.register_fake("quantry::embedding", lib=_lib)
def _fake_embedding(ids: Tensor, w: Any, layout: str, shape: Any, dtype: torch.dtype, pin: str) -> Tensor:
    rows: Tensor = w[0].new_empty((*ids.shape, shape[-1]), dtype=dtype)
    return rows


@torch.library.register_fake("quantry::experts", lib=_lib)
def _fake_experts(x: Tensor, ids: Tensor, w: Any, layout: str, shape: Any, bias: Any, pin: str) -> Tensor:
    return x.new_empty((*ids.shape, shape[-2]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, w, ctx.layout, ctx.shape, bias, ctx.pin = inputs
    ctx.save_for_backward(*w)
    ctx.has_bias = bias is not None and bias.requires_grad


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    dx = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.quantry.linear_dx(dy, list(ctx.saved_tensors), ctx.layout, ctx.shape, ctx.pin)
    db = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.has_bias else None
    return dx, [None] * len(ctx.saved_tensors), None, None, db, None


torch.library.register_autograd(
    "quantry::linear_train", _backward, setup_context=_save_for_backward, lib=_lib
)

linear = torch.ops.quantry.linear.default
linear_train = torch.ops.quantry.linear_train.default
embedding = torch.ops.quantry.embedding.default
experts = torch.ops.quantry.experts.default

# private torch flags; where one is gone `unwatched` is always False: the op path, slower and equally right
_dispatch_depth = getattr(torch._C, "_len_torch_dispatch_stack", None)
_function_depth = getattr(torch._C, "_len_torch_function_stack", None)
_tracing = getattr(torch._C, "_get_tracing_state", None)
_functorch = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_profiling = getattr(torch.autograd, "_profiler_enabled", None)
_FLAGS_KNOWN = None not in (_dispatch_depth, _function_depth, _tracing, _functorch, _profiling)


def unwatched(x: Tensor) -> bool:
    """Whether nobody needs to see an op: a plain tensor and no mode, functorch, tracer or profiler.

    A compiler is asked about before: it does not follow these flags.
    """
    return (
        _FLAGS_KNOWN
        and type(x) is Tensor
        and _dispatch_depth() == 0  # type: ignore[misc]
        and _function_depth() == 0  # type: ignore[misc]
        and _functorch() is None  # type: ignore[misc]
        and _tracing() is None  # type: ignore[misc]
        and not _profiling()  # type: ignore[misc]
    )

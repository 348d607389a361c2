"""Linear modules that multiply the same x: q, k and v, or gate and up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from quantry import ops
from quantry.kernel import BUCKETS, BoundGroup, Kernel, bucket_index
from quantry.nn.adapted import AdaptedLinear, SharedInput
from quantry.nn.linear import QuantLinear
from quantry.nn.packed import Bound

__all__ = ["LinearGroup"]


class LinearGroup:
    """`group(x)` equals `[module(x) for module in modules]`, in one kernel call where one kernel has all.

    Nothing is kept between calls but addresses of weights, which are dropped when a buffer changes. Modules
    that are no QuantLinear (adapted or not), have a bias, or are hooked, and calls that a compiler, tracer or
    autograd watches, run module by module.
    """

    __slots__ = ("_bound", "_calls", "_changes", "_hooked", "_modules", "modules")

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)
        bases = [m.base if type(m) is AdaptedLinear else m for m in modules]
        plain = all(type(m) is QuantLinear and m._parameters["bias"] is None for m in bases)
        same = plain and len({m.in_features for m in bases}) == 1
        self._modules: tuple[QuantLinear, ...] = tuple(bases) if same else ()  # type: ignore[arg-type]
        self._hooked = tuple(dict.fromkeys((*self.modules, *self._modules)))
        self._changes: SharedInput | None = None
        self._bound: tuple[Bound, ...] = ()
        self._calls: tuple[BoundGroup | None, ...] = ()

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x [*, K] → one [*, N] for each module."""
        if self._modules and not is_compiling() and not x.is_meta and not self._watched(x):
            if not self._current():
                self._bind()
            columns, bound = self._modules[0]._size[1], self._bound[0]
            if x.dtype is self._modules[0].compute_dtype and x.device == bound.device:
                rows = x.numel() // columns if columns else 0
                call = self._calls[0 if rows <= 1 else bucket_index(rows)]
                if call is not None and x.shape[-1] == columns:
                    ys = call(x)
                    if self._changes is not None:
                        self._changes.add_to(ys, x)
                    return ys
        return [module(x) for module in self.modules]

    def _watched(self, x: Tensor) -> bool:
        if (x.requires_grad and torch.is_grad_enabled()) or not ops.unwatched(x):
            return True
        return any(m._forward_hooks or m._forward_pre_hooks for m in self._hooked)

    def _current(self) -> bool:
        """Whether every module still has the binding, and the buffer, that the calls were made from."""
        bound = self._bound
        if not bound or (self._changes and not self._changes.current(self._modules[0].compute_dtype)):
            return False
        for module, b in zip(self._modules, bound, strict=True):
            if module._bound is not b or module._buffers.get(b.name) is not b.first:
                return False
        return True

    def _bind(self) -> None:
        for module in self._modules:
            b = module._bound
            if b is None or module._buffers.get(b.name) is not b.first:
                module.bind()
        self._bound = tuple(m._bound for m in self._modules)  # type: ignore[misc]
        self._calls = tuple(self._call(index) for index in range(len(BUCKETS)))
        if any(type(m) is AdaptedLinear for m in self.modules):
            self._changes = SharedInput(self.modules, self._modules[0].compute_dtype)

    def _call(self, index: int) -> BoundGroup | None:
        """One call for a row bucket, where all modules chose one kernel and that kernel groups."""
        first = self._modules[0]
        chosen = [m.kernels["linear"][index] for m in self._modules]
        kernel: Kernel | None = chosen[0]
        if kernel is None or any(k is not kernel for k in chosen):
            return None
        if any(m.compute_dtype is not first.compute_dtype or m.device != first.device for m in self._modules):
            return None
        return kernel.bind_group([(m._w, m.layout, m.shape) for m in self._modules])

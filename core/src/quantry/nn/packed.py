"""What every packed module shares: buffers by the layout's names, one storage for all its ops, moving and
saving."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from quantry import ops
from quantry.convert import convert
from quantry.dtypes import dtype_name, torch_dtype
from quantry.errors import FormatError, ShapeError, UsageError
from quantry.kernel import BoundLinear, Kernel, NumericsMode, Op
from quantry.layout import Layout
from quantry.measurement import WeightUse, measure
from quantry.plugins import registry
from quantry.policy import Policy, current_policy
from quantry.resolve import resolve
from quantry.source import release_pages
from quantry.tensor import QuantizedTensor

__all__ = ["PackedModule"]

_EXTRA = "_extra_state"
Self = TypeVar("Self", bound="PackedModule")


class Bound(NamedTuple):
    """The linear call of each row bucket, good while `name` is still the buffer `first` on `device`."""

    name: str
    first: Tensor
    device: torch.device
    calls: tuple[BoundLinear, ...]


class PackedModule(nn.Module):
    """A module whose weight is a QuantizedTensor, kept as plain buffers.

    The state_dict holds the buffers of the storable layout by name and `_extra_state`, a uint8 tensor of JSON
    `{"layout", "shape"}`; loading reads it first, so any layout loads into any module of the same kind. Dtype
    casts of a model (`.half()`) leave the buffers' bits alone and change `compute_dtype` only.
    """

    ops: ClassVar[tuple[Op, ...]]

    def __init__(self, qt: QuantizedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.needs: tuple[Op, ...] = self.ops  # a tied head adds an op to its embedding
        self.compute_dtype = torch.float32 if bias is None else bias.dtype
        self._policy = ""
        self._plan: dict[Op, tuple[Kernel | None, ...]] | None = None
        self._bound: Bound | None = None
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)
        self._names: list[str] = []
        self._install(qt)
        self._saved_layout = str(qt.layout)

    @classmethod
    def empty(cls: type[Self], layout: Layout | str, shape: tuple[int, ...], device: str = "meta") -> Self:
        """A module of uninitialised buffers, for `load_state_dict` or `to_empty`."""
        layout = registry().layout(layout) if isinstance(layout, str) else layout
        specs = layout.buffers(shape)
        buffers = {
            n: torch.empty(s.shape, dtype=torch_dtype(s.dtype), device=device) for n, s in specs.items()
        }
        return cls(QuantizedTensor(layout, shape, buffers))

    @property
    def qt(self) -> QuantizedTensor:
        """The weight as it is stored now (perhaps in a private packing)."""
        return QuantizedTensor(self.layout, self.shape, {n: self._buffers[n] for n in self._names})  # type: ignore[misc]

    def storable(self) -> QuantizedTensor:
        """The weight in the layout it came in, for saving."""
        return self.qt.convert(self._saved_layout)

    @property
    def weight(self) -> Tensor:
        """A dense weight itself; else a meta tensor of the logical shape and compute dtype, to be asked
        only."""
        dense = self._buffers.get("weight")
        if dense is not None:
            return dense
        return torch.empty(self.shape, dtype=self.compute_dtype, device="meta")

    @property
    def device(self) -> torch.device:
        """Device of the packed buffers."""
        return self._w[0].device

    def extra_repr(self) -> str:
        """Shape, layout, bits per weight."""
        size = "x".join(map(str, self.shape))
        return f"{size}, {self.layout}, {self.qt.bpw:.2f} bpw, bias={self.bias is not None}"

    def prepare(
        self,
        dtype: torch.dtype | None = None,
        numerics: NumericsMode | None = None,
        reference: bool | None = None,
        tensor: str | None = None,
        partial: bool = False,
    ) -> None:
        """Resolve the kernels of every row bucket and store the weight as they want it.

        What is not given stays as the current policy (`quantry.use`, environment) has it. Where it says
        `measure="on"`, kernels that were never timed on such a weight are timed first.
        Raises NoKernelError naming `tensor`; with `partial` only where no row count at all has a kernel, and
        later calls with a row count that has none raise it.
        """
        use = self.weight_use(dtype, numerics, reference)
        if use.policy.measure == "on":
            measure([use])
        self.settle(use, tensor, partial)

    def weight_use(
        self,
        dtype: torch.dtype | None = None,
        numerics: NumericsMode | None = None,
        reference: bool | None = None,
    ) -> WeightUse:
        """What `prepare` with these arguments resolves."""
        policy = Policy.parse(self._policy)
        policy = replace(
            policy,
            numerics=numerics or policy.numerics,
            reference=policy.reference if reference is None else reference,
            measure=current_policy().measure,  # of the moment: it changes no result
        )
        return WeightUse(
            registry().layout(self._saved_layout),
            self.shape,
            self.needs,
            dtype_name(dtype or self.compute_dtype),
            str(self.device),
            policy,
        )

    def settle(self, use: WeightUse, tensor: str | None = None, partial: bool = False) -> None:
        """`prepare` for a use of this weight, without measuring."""
        decision = resolve(
            use.layout, use.shape, use.ops, use.dtype, use.device, use.policy, tensor=tensor, partial=partial
        )
        if decision.storage != self.layout:
            self._install(convert(self.storable(), decision.storage, release=release_pages))
        self.compute_dtype = torch_dtype(use.dtype)
        self._policy = str(use.policy)
        self._plan = {op: decision.plan(op) for op in self.needs}
        self._bound = None

    @property
    def kernels(self) -> Mapping[Op, tuple[Kernel | None, ...]]:
        """The kernel of each op and row bucket; empty before `prepare` or the first call."""
        return self._plan or {}

    def _install(self, qt: QuantizedTensor) -> None:
        for name in self._names:
            del self._buffers[name]
        self.layout = qt.layout
        self.shape = qt.shape
        self._names = list(qt.buffers)
        self._text = str(qt.layout)
        self._size = list(qt.shape)
        # not register_buffer: a dense layout's buffer is called `weight`, as the property is
        self._buffers.update(qt.buffers)
        self._plan = self._bound = None

    @property
    def _w(self) -> list[Tensor]:
        buffers = self._buffers
        return [buffers[name] for name in self._names]  # type: ignore[misc]

    def _ready(self) -> dict[Op, tuple[Kernel | None, ...]]:
        """The plan, resolved at the first eager call where nobody prepared the model."""
        if self._plan is None:
            self.settle(self.weight_use(), partial=True)  # a call never measures
        assert self._plan is not None
        return self._plan

    def bind(self) -> Bound:
        """The linear kernels bound to the buffers as they are, resolved first where nobody has prepared."""
        kernels = self._ready()["linear"]  # may repack: buffers are looked up after it
        w = self._w
        made = {k: k.bind(w, self.layout, self.shape) for k in set(kernels) if k is not None}
        calls = tuple(self._unbound if kernel is None else made[kernel] for kernel in kernels)
        self._bound = Bound(self._names[0], w[0], w[0].device, calls)
        return self._bound

    def _unbound(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """For a row count without a kernel: the op resolves anew, and says why nothing can run it."""
        return ops.linear(x, self._w, self._text, self._size, bias, self._policy)  # type: ignore[no-any-return]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        first = self._w[0]
        target = fn(torch.empty(0, dtype=torch.uint8, device=first.device)).device
        if target.type != first.device.type and "meta" not in (target.type, first.device.type):
            self._install(self.storable())  # a private packing of one device type means nothing on another
        packed = {name: self._buffers.pop(name) for name in self._names}
        try:
            super()._apply(fn, recurse)
        finally:
            # bytes have no dtype to cast: scales stay in the type the layout states
            self._buffers.update({n: _as_bytes(b, fn) for n, b in packed.items()})  # type: ignore[arg-type]
        probe = fn(torch.empty(0, dtype=self.compute_dtype, device=first.device))
        if target.type != first.device.type or probe.dtype != self.compute_dtype:
            self._plan = None
        self._bound = None
        self.compute_dtype = probe.dtype
        return self

    def get_extra_state(self) -> Tensor:
        """uint8 JSON of layout and shape: survives safetensors and `torch.load(weights_only=True)`."""
        text = json.dumps({"layout": self._saved_layout, "shape": list(self.shape)})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: `_load_from_state_dict` has read it before the buffers."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if str(self.layout) == self._saved_layout:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        packed = {name: self._buffers.pop(name) for name in self._names}
        try:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            self._buffers.update(packed)
        qt = self.storable()
        destination.update({prefix + name: buffer for name, buffer in qt.buffers.items()})

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        state = state_dict.get(prefix + _EXTRA)
        layout, shape = (
            (registry().layout(self._saved_layout), self.shape)
            if state is None
            else _parse_extra(state, prefix)
        )
        if shape != self.shape:
            raise ShapeError(
                f"the file holds shape {list(shape)}, the module {list(self.shape)}", tensor=prefix + "weight"
            )
        if layout != self.layout:
            device = self.device
            specs = layout.buffers(shape)
            self._install(
                QuantizedTensor(
                    layout,
                    shape,
                    {
                        n: torch.empty(s.shape, dtype=torch_dtype(s.dtype), device=device)
                        for n, s in specs.items()
                    },
                )
            )
        self._saved_layout = str(layout)
        self._plan = self._bound = None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_plan"] = state["_bound"] = None  # kernels and addresses belong to this process
        return state


def _as_bytes(buffer: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    flat = buffer.contiguous().reshape(-1).view(torch.uint8)
    return fn(flat).view(buffer.dtype).view(buffer.shape)


def _parse_extra(state: Tensor, prefix: str) -> tuple[Layout, tuple[int, ...]]:
    try:
        stated: Mapping[str, Any] = json.loads(bytes(state.to("cpu", torch.uint8).tolist()))
        layout, shape = registry().layout(str(stated["layout"])), tuple(int(n) for n in stated["shape"])
    except (ValueError, KeyError, TypeError, UsageError) as e:
        raise FormatError(f"unreadable layout description: {e}", tensor=prefix + _EXTRA) from e
    reason = layout.why_not(shape)
    if reason is not None or any(n < 0 for n in shape):
        raise FormatError(f"{layout} cannot hold {list(shape)}: {reason}", tensor=prefix + _EXTRA)
    return layout, shape

"""Modules that add what an adapter changes; the weight beside it stays as it is stored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from quantry import ops
from quantry.errors import ShapeError
from quantry.plugins import registry

if TYPE_CHECKING:
    from quantry.adapter import LowRank
    from quantry.kernel import BoundLowRank

__all__ = ["AdaptedEmbedding", "AdaptedExperts", "AdaptedLinear", "SharedInput"]


class _Adapted(nn.Module):
    """`base`, and the sum of changes merged along the rank: several cost what one of their ranks' sum costs.

    a [*, R, K] and b [*, R, N], which holds the scales. dtype: of the activations.
    """

    a: Tensor
    b: Tensor
    looks_up: ClassVar[bool] = False  # rows of b, which is [*, N, R] then

    def __init__(
        self,
        base: nn.Module,
        changes: Sequence[LowRank],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.base = base
        for change in changes:
            if self.shape is not None and change.shape != self.shape:
                raise ShapeError(f"the change is one of {list(change.shape)}, the weight {list(self.shape)}")
        a = torch.cat([c.a for c in changes], -2)
        b = torch.cat([c.b.double().mT * c.scale for c in changes], -2)  # rounded once, with its scale
        self.register_buffer("a", a.to(device, dtype).contiguous())
        self.register_buffer("b", (b.mT if self.looks_up else b).to(device, dtype).contiguous())

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The weight's, None where `base` does not say."""
        if isinstance(self.base, nn.Linear | nn.Embedding):
            return tuple(self.base.weight.shape)
        return getattr(self.base, "shape", None)

    @property
    def weight(self) -> Tensor:
        """That of `base`, without the change."""
        return self.base.weight  # type: ignore[return-value]

    def low_rank(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a and b in a dtype."""
        return (self.a, self.b) if self.a.dtype is dtype else (self.a.to(dtype), self.b.to(dtype))

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank {self.a.shape[-2]}"


class AdaptedLinear(_Adapted):
    """x [*, K] → base(x) + (x aᵀ) b [*, N]; base: a packed or plain linear layer, or a tied head.

    Raises ShapeError for the change of another shape.
    """

    @property
    def in_features(self) -> int:
        """K."""
        return self.a.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.b.shape[1]

    @property
    def bias(self) -> Tensor | None:
        """That of `base`."""
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """In x's dtype; products and their sum as torch makes them in that dtype."""
        y: Tensor = self._modules["base"](x)  # type: ignore[misc]  # past nn.Module's search, at every call
        if is_compiling() or y.requires_grad or x.is_meta or not (y.is_contiguous() and ops.unwatched(x)):
            a, b = self.low_rank(x.dtype)
            return y + F.linear(x, a) @ b
        alone: SharedInput | None = self.__dict__.get("_alone")
        if alone is None or not alone.current(x.dtype):
            alone = self.__dict__["_alone"] = SharedInput((self,), x.dtype)
        alone.add_to((y,), x)
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_alone"}

    @staticmethod
    def lay_together(modules: Sequence[AdaptedLinear]) -> None:
        """Make the a's of layers that may share an x rows of one matrix, which `SharedInput` takes."""
        for width in {m.in_features for m in modules}:
            alike = [m for m in modules if m.in_features == width]
            together = torch.cat([m.a for m in alike])
            for module, a in zip(alike, together.split([len(m.a) for m in alike]), strict=True):
                module.a = a


class AdaptedEmbedding(_Adapted):
    """ids [*] → base(ids) + b[:, ids]ᵀ a. A head that is tied to `base` is not changed.

    Raises ShapeError for the change of another shape.
    """

    looks_up = True

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.b.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return self.a.shape[1]

    @property
    def padding_idx(self) -> int | None:
        """That of `base`."""
        return self.base.padding_idx  # type: ignore[return-value]

    def forward(self, ids: Tensor) -> Tensor:
        """Rows in the dtype of base's. Raises as `base` for ids that are none."""
        rows: Tensor = self.base(ids)
        a, b = self.low_rank(rows.dtype)
        return rows + F.embedding(ids, b) @ a


class AdaptedExperts(_Adapted):
    """x [T, 1|k, K], ids [T, k] → base(x, ids) + the change of each row's expert [T, k, N]."""

    @property
    def num_experts(self) -> int:
        """E."""
        return self.a.shape[0]

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """In x's dtype."""
        y: Tensor = self.base(x, ids)
        a, b = self.low_rank(x.dtype)
        wide = x.expand(*ids.shape, x.shape[-1])
        for e in torch.unique(ids).tolist():
            chosen = ids == e
            y[chosen] += wide[chosen] @ a[e].T @ b[e]
        return y


class SharedInput:
    """The changes of linear layers that multiply the same x of one dtype, their a's in one matrix."""

    __slots__ = ("_a", "_bs", "_dtype", "_indices", "_one_row", "_ranks", "_seen")

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        adapted = [(i, m) for i, m in enumerate(modules) if isinstance(m, AdaptedLinear)]
        self._seen = [(m, m.a, m.b) for _, m in adapted]
        self._dtype = dtype
        self._indices = [i for i, _ in adapted]
        pairs = [m.low_rank(dtype) for _, m in adapted]
        self._bs = [b for _, b in pairs]
        self._ranks = [len(b) for b in self._bs]
        together = _one_matrix([a for a, _ in pairs])
        self._a = together.t()
        self._one_row = _bound(together, self._bs)

    def current(self, dtype: torch.dtype) -> bool:
        """Whether the layers still have the tensors that were taken, and `dtype` is the one."""
        for module, a, b in self._seen:
            if module._buffers["a"] is not a or module._buffers["b"] is not b:
                return False
        return dtype is self._dtype

    def add_to(self, ys: Sequence[Tensor], x: Tensor) -> None:
        """Add each layer's change for x [*, K] to its y [*, N], rows contiguous and nobody else's."""
        if len(ys) > len(self._indices):
            ys = [ys[i] for i in self._indices]
        if self._one_row is not None and x.numel() == self._a.shape[0] and x.is_cpu and x.is_contiguous():
            self._one_row(x, ys)
            return
        inner = torch.mm(x.reshape(-1, x.shape[-1]), self._a)
        for y, part, b in zip(ys, inner.split(self._ranks, 1), self._bs, strict=True):
            y.view(-1, y.shape[-1]).addmm_(part, b)


def _bound(a: Tensor, bs: Sequence[Tensor]) -> BoundLowRank | None:
    """One call for one row of float32, of the first dense kernel that has one."""
    if a.dtype is not torch.float32:
        return None
    disabled = os.environ.get("QUANTRY_DISABLE", "").split(",")
    for kernel in registry().kernels:
        fits = kernel.op == "linear" and kernel.family == "dense" and kernel.device in ("*", a.device.type)
        if fits and kernel.name not in disabled:
            bound = kernel.bind_low_rank(a, bs)
            if bound is not None:
                return bound
    return None


def _one_matrix(rows: Sequence[Tensor]) -> Tensor:
    """[ΣR, K]: a view where the matrices lie one behind the other, as `lay_together` leaves them."""
    first, end = rows[0], rows[0].data_ptr()
    for a in rows:
        same = a.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or a.data_ptr() != end or not a.is_contiguous():
            return torch.cat(list(rows))
        end += a.nbytes
    return first.as_strided((sum(map(len, rows)), first.shape[1]), first.stride())

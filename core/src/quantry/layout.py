"""What packed bytes mean: the `Layout` contract, its text form and its parser."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quantry.dtypes import ITEM_BYTES
from quantry.errors import ShapeError, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BufferSpec", "Layout", "Shape", "parse_layout"]

Shape = tuple[int, ...]


class BufferSpec(NamedTuple):
    """Element type (a name of `quantry.dtypes`) and shape of one buffer."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Layout(ABC):
    """A value object: equal text means the same bytes mean the same numbers.

    Subclasses are frozen, slotted dataclasses. Their text form is the family, a colon, and the fields in
    order: a `metadata={"prefix": "b"}` stands before the value, a true flag is its name, a false one is
    absent, a pair is `128x128`. Shapes are logical and end in `(N, K)` = (out_features, in_features); leading
    dimensions are experts.
    """

    __slots__ = ()

    family: ClassVar[str]
    """Kernels, conversions and codecs find a layout by this name."""
    storable: ClassVar[bool] = True
    """False for a private packing of kernels: never written to a file, converted back before saving."""
    growth: ClassVar[float] = 1.05
    """How much larger than the weight in this layout a storage for kernels may be (policy memory="tight")."""

    def __str__(self) -> str:
        parts = [text for f in dataclasses.fields(self) if (text := _field_text(f, getattr(self, f.name)))]  # type: ignore[arg-type]
        return f"{self.family}:{','.join(parts)}"

    @classmethod
    def variants(cls) -> Iterable[Layout]:
        """Members of the family that `quantry bench` tries where the user names none."""
        return ()

    @property
    def published_activations(self) -> tuple[str, ...]:
        """Activation roundings (as `Numerics.activations`) that are the format's own published arithmetic.

        Kernels that round this way are admitted by `numerics="strict"`.
        """
        return ()

    @abstractmethod
    def why_not(self, shape: Shape) -> str | None:
        """The sentence that says why `shape` cannot be represented, or None."""

    @abstractmethod
    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """Name → element type and shape of every buffer, known without any data. Order is fixed."""

    @abstractmethod
    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The float32 values [*shape]: the definition that kernels and conversions are tested against."""

    def step(self, dim: int) -> int | None:
        """Slice granularity along out_features (-2) or in_features (-1); None: this dimension cannot be
        sliced."""
        return None

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """The buffers of `weight.narrow(dim, start, length)`, dim negative; start and length are multiples of
        `step`."""
        raise ShapeError(f"{self} cannot be sliced along dimension {dim}")

    def sample(self, shape: Shape) -> dict[str, Tensor]:
        """Buffers on the CPU that kernels are timed on: valid to read and quick to compute with, not
        meaningful.

        Index-like integers are a permutation of the last dimension; see `quantry.sample` for the bytes. A
        layout whose bytes hold something else that a kernel would choke on overrides it.
        """
        from quantry.sample import sample_buffer

        return {name: sample_buffer(spec) for name, spec in self.buffers(shape).items()}

    def nbytes(self, shape: Shape) -> int:
        """Bytes of all buffers."""
        return sum(spec.nbytes for spec in self.buffers(shape).values())


def parse_layout(text: str, families: Mapping[str, type[Layout]]) -> Layout:
    """The layout written as `text`; `parse_layout(str(x), …) == x`.

    Raises UsageError for an unknown family or a malformed field.
    """
    family, _, rest = text.partition(":")
    cls = families.get(family)
    if cls is None:
        raise UsageError(f"unknown layout family {family!r} in {text!r}", hint=nearest(family, families))
    parts = rest.split(",") if rest else []
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind = str(f.type)
        if kind == "bool":
            values[f.name] = bool(parts) and parts[0] == f.name
            parts = parts[1:] if values[f.name] else parts
        elif not parts:
            raise UsageError(f"layout {text!r} lacks the field {f.name!r}")
        else:
            values[f.name] = _field_value(kind, parts.pop(0), f.metadata.get("prefix", ""), text)
    if parts:
        raise UsageError(f"layout {text!r} has {parts[0]!r} left over")
    return cls(**values)


def _field_text(f: dataclasses.Field[Any], value: Any) -> str:
    if isinstance(value, bool):
        return f.name if value else ""
    if isinstance(value, tuple):
        value = "x".join(str(v) for v in value)
    return f"{f.metadata.get('prefix', '')}{value}"


def _field_value(kind: str, part: str, prefix: str, text: str) -> Any:
    if not part.startswith(prefix):
        raise UsageError(f"layout {text!r}: expected {prefix}…, found {part!r}")
    bare = part[len(prefix) :]
    try:
        if kind == "int":
            return int(bare)
        if kind.startswith("tuple"):
            return tuple(int(v) for v in bare.split("x"))
    except ValueError:
        raise UsageError(f"layout {text!r}: {part!r} is not a number") from None
    return bare

"""UQFF codecs: one tag's packed weight as named safetensors entries, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from quantry.errors import HeaderError
from quantry.layout import BufferSpec, Layout, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from quantry.tensor import QuantizedTensor

__all__ = ["UqffCodec"]

_MAX_DIM = 2**32 - 1  # `.shape` is U32


class UqffCodec(ABC):
    """How one UQFF tag stores layouts of one family.

    Entries are named by suffix: "" is `<key>.weight`, ".shape" is `<key>.weight.shape`. The `.format` entry
    (the tag) and the bias belong to the container, not to the codec.
    """

    tag: ClassVar[int]
    family: ClassVar[str]

    @abstractmethod
    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """The sentence that says why this tag cannot store the weight, or None."""

    @abstractmethod
    def label(self, layout: Layout) -> str:
        """The type's name in `uqff_report.json` ("q4k", "unquant")."""

    @abstractmethod
    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Suffix → element type and shape, before any data exists."""

    @abstractmethod
    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """Suffix → tensor, equal to `entries` in names, types and shapes."""

    @abstractmethod
    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """Layout and logical shape from headers and from the entries of at most 4096 bytes (`small`).

        Raises FormatError when the entries contradict each other: every length is checked here, before data
        is read.
        """

    @abstractmethod
    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """The packed weight, sharing memory with `entries` where the bytes are the same."""

    def matrix_refusal(self, layout: Layout, shape: Shape) -> str | None:
        """`why_not` of a tag that stores matrices the layout holds, with dimensions of 32 bits."""
        if len(shape) != 2:
            return f"UQFF tag {self.tag} stores matrices, not stacks of them: got {len(shape)} dimensions"
        if max(shape) > _MAX_DIM:
            return f"UQFF tag {self.tag} stores 32-bit dimensions, got {max(shape)}"
        return layout.why_not(shape)

    def expect(self, specs: Mapping[str, BufferSpec], expected: Mapping[str, BufferSpec]) -> None:
        """Raise HeaderError naming the first of the expected entries that is missing or another one."""
        for suffix, wanted in expected.items():
            if suffix not in specs:
                raise HeaderError(f"UQFF tag {self.tag} needs the entry `weight{suffix}`")
            if specs[suffix] != wanted:
                found = specs[suffix]
                raise HeaderError(
                    f"`weight{suffix}` must be {wanted.dtype} {list(wanted.shape)},"
                    f" found {found.dtype} {list(found.shape)}"
                )

    def from_buffers(self, layout: Layout, shape: Shape, buffers: Mapping[str, Tensor]) -> QuantizedTensor:
        """Buffers that are entries as they are. Raises HeaderError for one of another shape."""
        from quantry.tensor import QuantizedTensor

        for name, spec in layout.buffers(shape).items():
            found = tuple(buffers[name].shape)
            if found != spec.shape:
                raise HeaderError(
                    f"{layout} {list(shape)} has {name} {list(spec.shape)}, found {list(found)}"
                )
        return QuantizedTensor(layout, shape, buffers)

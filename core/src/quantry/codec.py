"""UQFF codecs: one tag's packed weight as named safetensors entries, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from quantry.layout import BufferSpec, Layout, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from quantry.tensor import QuantizedTensor

__all__ = ["UqffCodec"]


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

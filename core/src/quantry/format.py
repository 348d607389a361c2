"""Checkpoint formats: how a file is recognised, listed and loaded."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    from quantry.source import Source
    from quantry.tensor import QuantizedTensor

__all__ = ["Detection", "Format", "TensorEntry", "WeightSource"]


@dataclass(frozen=True, slots=True)
class Detection:
    """That a format recognises a source, how sure it is (0–100) and by what evidence.

    facts: what the format learned on the way and needs again (parsed headers, file lists); opaque to others.
    """

    format: str
    confidence: int
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One logical weight of a checkpoint, known from headers alone.

    ops: what a runtime will do with it ("linear", "embedding", "experts"); () for a plain parameter.
    place: where its bytes are; opaque to everyone but the format.
    """

    name: str
    layout: Layout
    shape: Shape
    ops: tuple[str, ...] = ()
    place: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Packed bytes."""
        return self.layout.nbytes(self.shape)


class WeightSource(Protocol):
    """Named weights, read on demand: a Checkpoint, or what a runtime exports from one."""

    def entries(self) -> Sequence[TensorEntry]:
        """Every tensor's name, layout and shape."""

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        """The tensor, or rows of its first dimension."""


class Format(ABC):
    """One way in which weights lie on disk."""

    name: ClassVar[str]
    own_names: ClassVar[bool] = False
    """True where tensor names and row order are the format's own; `Runtime.export` gives the model's."""

    @abstractmethod
    def detect(self, source: Source) -> Detection | None:
        """Whether this is the source's format. Reads headers only; returns None for "not mine".

        Raises FormatError when the file is certainly of this format and damaged.
        """

    @abstractmethod
    def entries(self, source: Source, detection: Detection) -> Iterable[TensorEntry]:
        """Every logical weight, in file order, from headers only. Raises FormatError naming file and
        tensor."""

    @abstractmethod
    def load(self, entry: TensorEntry, rows: slice | None = None) -> QuantizedTensor:
        """The packed weight, as views of the mapped file where possible; `rows` reads only that slice of dim
        0."""

    def config(self, source: Source, detection: Detection) -> Mapping[str, Any]:
        """The model's metadata as plain Python values."""
        return {}

    def architecture(self, source: Source, detection: Detection) -> str | None:
        """The architecture's name as the format states it ("gemma3", "LlamaForCausalLM"), None if it does
        not."""
        return None

    def verify(
        self, source: Source, detection: Detection, strict: bool = False
    ) -> Iterable[tuple[str, str, str]]:
        """(file, tensor, problem) for each fault beyond those that `detect` and `entries` raise."""
        return ()

"""Modules that ISQ packs though they are neither linear layers nor embeddings: their plugin knows how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from quantry.roles import Role

if TYPE_CHECKING:
    from torch import nn

    from quantry.tensor import QuantizedTensor

__all__ = ["ModulePacker"]


class ModulePacker(ABC):
    """Rebuilds one kind of module around packed weights: expert stacks, layers of transposed matrices."""

    name: ClassVar[str]

    @abstractmethod
    def weights(self, module: nn.Module) -> Mapping[str, Role]:
        """Parameter name → role, of the parameters it wants packed; {} for a module it does not know.

        Every role but "other" is quantized as tensors of that role are; all of them are packed or none.
        """

    @abstractmethod
    def pack(self, module: nn.Module, packed: Mapping[str, QuantizedTensor]) -> nn.Module:
        """A module that gives what `module` gives, with these weights; the dense ones are freed with it."""

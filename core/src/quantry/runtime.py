"""Runtimes: what turns a checkpoint into a model that generates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quantry.format import WeightSource
from quantry.roles import Role

if TYPE_CHECKING:
    import torch

    from quantry.checkpoint import Checkpoint
    from quantry.kernel import NumericsMode

__all__ = ["Exported", "Runtime"]


class Exported(NamedTuple):
    """A checkpoint under the model's own names: `config.json`, weights still packed, the files beside."""

    config: Mapping[str, Any]
    weights: WeightSource
    files: Mapping[str, bytes]


class Runtime(ABC):
    """Builds a whole model from a checkpoint, its weights packed."""

    name: ClassVar[str]

    @abstractmethod
    def why_not(self, checkpoint: Checkpoint) -> str | None:
        """The sentence that says why this runtime cannot build the checkpoint, or None when it can."""

    @abstractmethod
    def load(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        numerics: NumericsMode = "strict",
        reference: bool = False,
        isq: str | None = None,
        trust_remote_code: bool = False,
    ) -> tuple[Any, Any]:
        """(model, tokenizer), every weight placed and prepared. dtype: of activations, None = the runtime's
        choice.

        isq: quantize dense weights to this type while loading. reference: permit the slow tile-wise kernels.
        """

    def export(self, checkpoint: Checkpoint) -> Exported | None:
        """A checkpoint whose names are its format's own, as the model names it; None where it cannot say."""
        return None

    def roles(self, checkpoint: Checkpoint) -> Mapping[str, Role]:
        """Tensor name → the part it plays in the model, judged from the model's modules; {} where unknown.

        ISQ takes linear layers, embeddings, heads and expert stacks; names decide for tensors that are not
        in here.
        """
        return {}

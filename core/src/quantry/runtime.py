"""Runtimes: what turns a checkpoint into a model that generates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quantry.errors import UsageError
from quantry.format import WeightSource
from quantry.roles import Role

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantry.adapter import Adapter
    from quantry.checkpoint import Checkpoint
    from quantry.kernel import NumericsMode

__all__ = ["Calibrated", "Exported", "Observer", "Runtime"]


Observer = Callable[[Sequence[str], "Tensor", "Tensor | None"], None]
"""Told what weights are multiplied by: names of those that share it, x [rows, K] of the compute dtype, and
for stacks of experts the expert [rows] of each row, int64."""


class Calibrated(NamedTuple):
    """What `Runtime.calibrate` has run."""

    chunks: int
    tokens: int


class Exported(NamedTuple):
    """A checkpoint under other names: `config.json` or another format's metadata, weights still packed, the
    files beside."""

    config: Mapping[str, Any]
    weights: WeightSource
    files: Mapping[str, bytes]


class Runtime(ABC):
    """Builds a whole model from a checkpoint, its weights packed."""

    name: ClassVar[str]
    conventions: ClassVar[tuple[str, ...]] = ()
    """Whose names and metadata it knows beside the model's own: "gguf"."""

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
        adapters: Sequence[Adapter] = (),
        trust_remote_code: bool = False,
    ) -> tuple[Any, Any]:
        """(model, tokenizer), every weight placed and prepared. dtype: of activations, None = the runtime's
        choice.

        isq: quantize dense weights to this type while loading. reference: permit the slow tile-wise kernels.
        adapters: added together beside the packed weights, each times its scale. Raises UsageError for one
        of another model, ShapeError for a part that does not fit its weight.
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

    def other_names(self, checkpoint: Checkpoint, convention: str) -> Mapping[str, str]:
        """Another convention's name of each weight → the model's, experts as one stack; {} where unknown."""
        return {}

    def export_as(self, checkpoint: Checkpoint, convention: str) -> Exported | None:
        """The checkpoint under another format's names, metadata and row order; None where it cannot.

        Metadata that depends on how tensors are stored is the writer's to add.
        """
        return None

    def calibrate(
        self,
        checkpoint: Checkpoint,
        text: str,
        observe: Observer,
        *,
        chunks: int | None = None,
        chunk_tokens: int = 512,
        device: str = "cpu",
        progress: Callable[[int, int, str], None] | None = None,
        trust_remote_code: bool = False,
    ) -> Calibrated:
        """Run the model over a text and show each weight's inputs, one block of layers in memory at a time.

        chunks: at most so many pieces of `chunk_tokens` tokens; None: all whole ones. progress: told
        (done, in all, what). Raises UsageError for a text shorter than one chunk, or where the runtime has no
        way to do it.
        """
        raise UsageError(f"the runtime {self.name} cannot collect what its weights are multiplied by")

"""GGUF's tensors made of a checkpoint's under transformers' names: known from headers alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantry import FormatError, TensorEntry, expert_parts, expert_slot
from quantry_transformers import names
from quantry_transformers.architectures import ARCHITECTURES
from quantry_transformers.gguf_models import GGUF_MODELS, GgufModel

if TYPE_CHECKING:
    from quantry import Checkpoint

__all__ = ["Origin", "gguf_names", "origins"]

_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq\Z")  # old checkpoints store what the model computes


@dataclass(frozen=True, slots=True)
class Origin:
    """What a GGUF tensor is made of.

    weight: the model's name of it, experts as one stack, gate and up apart. stored: the checkpoint's tensors;
    of a stack one an expert, in order, else one. first, rows: of every expert's rows these only; rows 0: all.
    """

    weight: str
    stored: tuple[str, ...]
    first: int = 0
    rows: int = 0
    is_stack: bool = False

    @property
    def is_part(self) -> bool:
        """Whether it is cut from a fused stack."""
        return self.rows > 0


def gguf_names(checkpoint: Checkpoint) -> dict[str, str]:
    """GGUF name of each weight → the model's; {} for architectures that GGUF has no names for.

    A tied head is the embedding, and comes first. What GGUF has no name for is left out.
    """
    if checkpoint.format.name == "gguf":
        arch = ARCHITECTURES.get(checkpoint.architecture or "")
        if arch is None:
            return {}
        named = {name: names.to_hf(name, arch) for name in checkpoint.names()}
        found = {name: weight for name, weight in named.items() if weight is not None}
    else:
        model = GGUF_MODELS.get(str(checkpoint.config.get("model_type")))
        if model is None:
            return {}
        made, _ = _made_of(checkpoint, model)
        found = {name: origin.weight for name, origin in made.items()}
    if "output.weight" not in found and "token_embd.weight" in found:
        return {"output.weight": found["token_embd.weight"], **found}
    return found


def origins(checkpoint: Checkpoint, model: GgufModel, layers: int, tied: bool) -> dict[str, Origin]:
    """GGUF name → what the tensor is made of, in the order of the model's layers.

    tied: the head is the embedding, whatever the checkpoint holds beside it.
    Raises FormatError naming the first tensor that has no place, or the expert that makes no stack.
    """
    file = checkpoint.source.path
    made, homeless = _made_of(checkpoint, model)
    for name in homeless:
        if not _COMPUTED.search(name):
            raise FormatError(
                f"GGUF has no place for it in architecture {model.arch.gguf!r}", file=file, tensor=name
            )
    if tied:
        made.pop("output.weight", None)
    for origin in made.values():
        if origin.is_stack:
            _check_stack(checkpoint, origin)
    blocks = [f"blk.{i}.{module}" for i in range(layers) for module in model.arch.block]
    place = {module: i for i, module in enumerate(["token_embd", *blocks, "output_norm", "output"])}
    for name, origin in made.items():
        if name.rpartition(".")[0] not in place:
            raise FormatError(
                f"config.json states {layers} layers; this tensor is of another",
                file=file,
                tensor=origin.stored[0],
            )
    return dict(sorted(made.items(), key=lambda item: place[item[0].rpartition(".")[0]]))


def _made_of(checkpoint: Checkpoint, model: GgufModel) -> tuple[dict[str, Origin], list[str]]:
    """The GGUF tensors, and the checkpoint's tensors that none is made of."""
    entries = {entry.name: entry for entry in checkpoint.entries()}
    experts: dict[str, dict[int, str]] = {}
    found: list[Origin] = []
    taken: set[str] = set()
    for name, entry in entries.items():
        if (slot := expert_slot(name)) is not None:
            experts.setdefault(slot[0], {})[slot[1]] = name
        elif (parts := expert_parts(name)) is not None and _is_concatenated(entry, entries.get(parts[3])):
            gate, up, down, beside = parts
            half = entry.shape[1] // 2
            found.append(Origin(gate, (name,), 0, half))
            found.append(Origin(up, (name,), half, half))
            found.append(Origin(down, (beside,)))
            taken |= {name, beside}
    for weight, by_index in experts.items():
        stored = tuple(by_index[i] for i in sorted(by_index))
        found.append(Origin(weight, stored, is_stack=True))
        taken.update(stored)
    found += [Origin(name, (name,)) for name in entries if name not in taken]
    made: dict[str, Origin] = {}
    homeless: list[str] = []
    for origin in found:
        gguf = names.to_gguf(origin.weight.replace(".block_sparse_moe.", ".mlp."), model.arch)
        if gguf is None:
            homeless += origin.stored
        else:
            made[gguf] = origin
    return made, homeless


def _is_concatenated(entry: TensorEntry, down: TensorEntry | None) -> bool:
    if down is None or len(entry.shape) != 3 or entry.shape[1] % 2:
        return False
    experts, double, hidden = entry.shape
    return down.shape == (experts, hidden, double // 2)


def _check_stack(checkpoint: Checkpoint, origin: Origin) -> None:
    file, first = checkpoint.source.path, checkpoint.entry(origin.stored[0])
    for expected, name in enumerate(origin.stored):
        slot = expert_slot(name)
        if slot is None or slot[1] != expected:
            raise FormatError(f"expert {expected} is missing before it", file=file, tensor=name)
        entry = checkpoint.entry(name)
        if (entry.layout, entry.shape) != (first.layout, first.shape):
            raise FormatError(
                f"is {entry.layout} {list(entry.shape)}, expert 0 is {first.layout} {list(first.shape)}",
                file=file,
                tensor=name,
            )

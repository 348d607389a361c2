"""A folder as a GGUF file would hold it: key-values, tensors under GGUF's names and in its row order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from quantry import Dense, Exported, HeaderError, Layout, QuantizedTensor, TensorEntry, UsageError, nearest
from quantry_transformers.gguf_checks import check_shapes
from quantry_transformers.gguf_metadata import architecture_keys
from quantry_transformers.gguf_models import GgufModel, gguf_model
from quantry_transformers.gguf_names import Origin, origins
from quantry_transformers.gguf_vocabulary import tokenizer_keys
from quantry_transformers.runtime import configured
from quantry_transformers.weights import ROPE_LAYOUT, move_rows, rows_can_move

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedConfig

    from quantry import Checkpoint

__all__ = ["GgufWeights", "gguf_state"]

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


def gguf_state(checkpoint: Checkpoint) -> Exported:
    """Key-values and tensors of a GGUF file for the checkpoint's model; weights are read when asked for.

    config: key → str, bool, int (u32), float (f32), list of str, or a numpy array of the type to write.
    Raises UsageError for a model, configuration or tokenizer that llama.cpp would compute otherwise, and
    FormatError naming a tensor that is missing, of another shape, or that GGUF has no place for.
    """
    file = str(checkpoint.source.root / "config.json")
    model = gguf_model(checkpoint.config, file)
    config, _ = configured(checkpoint)
    tied = bool(config.tie_word_embeddings)
    _check_head(model, tied, file)
    made = origins(checkpoint, model, config.num_hidden_layers, tied)
    check_shapes(checkpoint, made, config)
    keys, factors = architecture_keys(config, model, file)
    general = {
        "general.architecture": model.arch.gguf,
        "general.type": "model",
        "general.name": _name(checkpoint),
    }
    tokens = tokenizer_keys(checkpoint.source, checkpoint.config, config.vocab_size)
    weights = GgufWeights(checkpoint, made, factors, model, config)
    return Exported({**general, **keys, **tokens}, weights, {})


class GgufWeights:
    """A WeightSource under GGUF's names. Nothing is read before `load`; rows are read with their heads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        made: Mapping[str, Origin],
        factors: Mapping[str, np.ndarray],
        model: GgufModel,
        config: PreTrainedConfig,
    ) -> None:
        self._checkpoint = checkpoint
        self._made = made
        self._factors = factors
        self._norm_offset = model.arch.norm_offset
        stored_adjacent = checkpoint.config.get(ROPE_LAYOUT) == "adjacent"
        self._heads: dict[str, int] = {}
        if model.arch.interleaved_rope and not stored_adjacent:
            self._heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        self._entries = {name: self._entry(name, origin) for name, origin in made.items()}
        for name, values in factors.items():
            self._entries[name] = TensorEntry(name, Dense("f32"), values.shape)

    def entries(self) -> Sequence[TensorEntry]:
        """Every tensor: the embedding, layer by layer, output; then rotary factors."""
        return list(self._entries.values())

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        """The tensor, or rows of its first dimension. Raises UsageError for an unknown name."""
        if name not in self._entries:
            raise UsageError(f"has no tensor {name!r} in GGUF's names", hint=nearest(name, self._entries))
        if name in self._factors:
            values = torch.from_numpy(self._factors[name])
            return _dense(values if rows is None else values[rows].clone())
        origin = self._made[name]
        if origin.is_stack:
            return self._stacked(origin, rows)
        (stored,) = origin.stored
        if (heads := self._permuted(name)) is not None:
            return self._interleaved(stored, heads, rows)
        if self._is_shifted(name):
            return _dense(self._checkpoint.load(stored, rows).dequantize() + self._norm_offset)
        if self._is_vector(name):
            return _dense(self._checkpoint[stored].dequantize().reshape(-1)[rows or slice(None)].clone())
        qt = self._checkpoint.load(stored, rows)
        return qt.narrow(-2, origin.first, origin.rows) if origin.is_part else qt

    def _entry(self, name: str, origin: Origin) -> TensorEntry:
        found = replace(self._checkpoint.entry(origin.stored[0]), name=name, place=None)
        if origin.is_stack:
            return replace(found, shape=(len(origin.stored), *found.shape), ops=("experts",))
        if origin.is_part:
            shape = (found.shape[0], origin.rows, found.shape[2])
            return replace(found, shape=shape, ops=("experts",))
        if self._is_vector(name):
            return replace(found, layout=Dense("f32"), shape=(math.prod(found.shape),), ops=())
        unmoved = self._permuted(name) is not None and not rows_can_move(found.layout, found.shape)
        if self._is_shifted(name) or unmoved:
            return replace(found, layout=Dense("f32"))
        return found

    def _permuted(self, name: str) -> int | None:
        """Heads of a matrix or bias whose rows are in another order in the file."""
        return self._heads.get(name.split(".")[-2])

    def _is_shifted(self, name: str) -> bool:
        return self._norm_offset != 0.0 and name.endswith("norm.weight")

    def _is_vector(self, name: str) -> bool:
        """Whether a matrix of one row is a vector in the file (llama.cpp src/models/qwen2moe.cpp)."""
        return name.endswith(".ffn_gate_inp_shexp.weight")

    def _stacked(self, origin: Origin, rows: slice | None) -> QuantizedTensor:
        chosen = origin.stored[rows or slice(None)]
        loaded = [self._checkpoint[name] for name in chosen or origin.stored[:1]]
        first = loaded[0]
        buffers = {n: torch.stack([qt.buffers[n] for qt in loaded]) for n in first.buffers}
        stack = QuantizedTensor(first.layout, (len(loaded), *first.shape), buffers)
        return stack if chosen else stack.narrow(0, 0, 0)

    def _interleaved(self, stored: str, heads: int, rows: slice | None) -> QuantizedTensor:
        """Rows in GGUF's order, read head by head so that a slice costs its heads only."""
        entry = self._checkpoint.entry(stored)
        total = entry.shape[0]
        if total % (2 * heads):
            raise HeaderError(
                f"{total} rows are not {heads} heads of an even size",
                file=self._checkpoint.source.path,
                tensor=stored,
            )
        start, stop, _ = (slice(None) if rows is None else rows).indices(total)
        stop = max(start, stop)
        head = total // heads
        grain = math.lcm(head, _row_step(entry.layout, entry.shape))
        low, high = start // grain * grain, min(total, -(-stop // grain) * grain)
        qt = self._checkpoint.load(stored, None if high - low == total else slice(low, high))
        if not rows_can_move(entry.layout, entry.shape):
            qt = _dense(qt.dequantize())
        moved = move_rows(qt, _interleaving(high - low, head))
        return moved if high - low == stop - start else moved.narrow(0, start - low, stop - start)


def _interleaving(rows: int, head: int) -> torch.Tensor:
    """File row h·D + 2i + b is the model's row h·D + b·D/2 + i (llama.cpp conversion/llama.py, permute)."""
    return torch.arange(rows).view(rows // head, 2, head // 2).transpose(1, 2).reshape(-1)


def _row_step(layout: Layout, shape: Sequence[int]) -> int:
    """Rows that can only be read together."""
    return layout.step(-2 if len(shape) > 1 else -1) or shape[0]


def _dense(values: torch.Tensor) -> QuantizedTensor:
    return QuantizedTensor(Dense("f32"), tuple(values.shape), {"weight": values})


def _check_head(model: GgufModel, tied: bool, file: str) -> None:
    needed = {"tied": True, "own": False}.get(model.head)
    if needed is not None and needed is not tied:
        raise UsageError(
            f"tie_word_embeddings is {tied}: llama.cpp takes the opposite for granted in {model.arch.gguf!r}",
            file=file,
        )


def _name(checkpoint: Checkpoint) -> str:
    """The model's name: its folder's, or its repository's where the folder is a commit of the hub's cache."""
    stated = checkpoint.config.get("_name_or_path")
    if isinstance(stated, str) and (last := stated.rstrip("/").rpartition("/")[2]):
        return last
    root = checkpoint.source.root.resolve()
    return root.parent.parent.name.rpartition("--")[2] if _COMMIT.match(root.name) else root.name

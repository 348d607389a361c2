"""A checkpoint's tensors under transformers' names and in its row order, still packed, read on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantry import FormatError, HeaderError, QuantizedTensor, ShapeError, TensorEntry
from quantry_transformers import names
from quantry_transformers.architectures import Architecture, architecture

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from quantry import Checkpoint, Layout, Shape

__all__ = [
    "ROPE_LAYOUT",
    "HfWeights",
    "folder_weights",
    "gguf_weights",
    "move_rows",
    "rows_can_move",
    "unpermute_rows",
]

ROPE_LAYOUT = "_mistralrs_qk_rope_layout"
"""Private key of UQFF folders that mistral.rs made from a GGUF: "adjacent" where rows are in GGUF's order."""


class HfWeights(Mapping[str, QuantizedTensor]):
    """transformers parameter name → packed weight. `entry(name)` knows layout and shape without reading."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stored: Mapping[str, str],
        transform: Callable[[str, QuantizedTensor], QuantizedTensor] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._stored = dict(stored)
        self._transform = transform

    def __getitem__(self, name: str) -> QuantizedTensor:
        return self.load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # Mapping's own would read the weight

    def renamed(self, rename: Callable[[str], str]) -> HfWeights:
        """The same weights under other names."""
        return HfWeights(
            self.checkpoint, {rename(n): stored for n, stored in self._stored.items()}, self._transform
        )

    def stored_name(self, name: str) -> str:
        """The tensor's name in the file."""
        return self._stored[name]

    def entry(self, name: str) -> TensorEntry:
        """Layout and shape from headers alone."""
        found = self.checkpoint.entry(self._stored[name])
        return TensorEntry(name, found.layout, found.shape, found.ops)

    def entries(self) -> list[TensorEntry]:
        """Of every weight, in file order."""
        return [self.entry(name) for name in self._stored]

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        """The weight, or rows of its first dimension; rows of one that is changed are cut from the whole."""
        if self._transform is None:
            return self.checkpoint.load(self._stored[name], rows)
        whole = self._transform(name, self.checkpoint[self._stored[name]])
        if rows is None:
            return whole
        start, stop, _ = rows.indices(whole.shape[0])
        return whole.narrow(0, start, stop - start)


def gguf_weights(checkpoint: Checkpoint, config: Mapping[str, Any]) -> HfWeights:
    """The weights of a GGUF file as transformers' modules want them; no quantized weight is dequantized.

    config: as `hf_config` makes it. Raises FormatError naming the first tensor the architecture lacks.
    """
    arch = architecture(checkpoint.architecture)
    stored: dict[str, str] = {}
    for name in checkpoint.names():
        if name in names.CONFIG_TENSORS:
            continue
        hf = names.to_hf(name, arch)
        if hf is None:
            raise FormatError(
                f"architecture {arch.gguf!r} has no such tensor", file=checkpoint.source.path, tensor=name
            )
        stored[hf] = name
    return HfWeights(checkpoint, stored, _gguf_transform(arch, config))


def folder_weights(checkpoint: Checkpoint, config: PreTrainedConfig) -> HfWeights:
    """The weights of a folder with transformers' names: UQFF, safetensors, or what a method plugin reads.

    Raises HeaderError for a rotary layout of q and k that is unknown.
    """
    rope_layout = checkpoint.config.get(ROPE_LAYOUT, "half_split")
    if rope_layout not in ("half_split", "adjacent"):
        raise HeaderError(
            f"unknown {ROPE_LAYOUT} {rope_layout!r}", file=checkpoint.source.root / "config.json"
        )
    stored = {name: name for name in checkpoint.names()}
    if rope_layout == "half_split":
        return HfWeights(checkpoint, stored)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return HfWeights(checkpoint, stored, lambda name, qt: _half_split(name, qt, heads, kv_heads))


def unpermute_rows(qt: QuantizedTensor, heads: int) -> QuantizedTensor:
    """Rows of q or k moved from interleaved to half-split rotary order, packed as they are.

    File row h·D + 2i + b holds row h·D + b·D/2 + i, D = rows per head (gguf-py/gguf/tensor_mapping.py).
    Raises ShapeError where rows cannot be moved alone.
    """
    import torch

    rows = qt.shape[0]
    if rows % (2 * heads):
        raise ShapeError(f"{rows} rows are not {heads} heads of an even size")
    return move_rows(qt, torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1))


def move_rows(qt: QuantizedTensor, order: Tensor) -> QuantizedTensor:
    """Row i of the result is row `order[i]`, packed as it is. order: int64 [rows].

    Raises ShapeError where rows cannot be moved alone.
    """
    if not rows_can_move(qt.layout, qt.shape):
        raise ShapeError(f"{qt.layout} shares a buffer between rows: they cannot be moved")
    wider = qt.layout.buffers((2 * qt.shape[0], *qt.shape[1:]))
    buffers = {
        # a buffer that does not grow with the rows is one value for all
        name: buffer
        if wider[name].shape == tuple(buffer.shape)
        else buffer.index_select(0, order.to(buffer.device))
        for name, buffer in qt.buffers.items()
    }
    return QuantizedTensor(qt.layout, qt.shape, buffers)


def rows_can_move(layout: Layout, shape: Shape) -> bool:
    """Whether each buffer of the layout has a slice for every row, or one value for all rows."""
    found, wider = layout.buffers(shape), layout.buffers((2 * shape[0], *shape[1:]))
    return all(
        wider[name].shape in (spec.shape, (2 * shape[0], *spec.shape[1:])) for name, spec in found.items()
    )


def _gguf_transform(
    arch: Architecture, config: Mapping[str, Any]
) -> Callable[[str, QuantizedTensor], QuantizedTensor]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def transform(name: str, qt: QuantizedTensor) -> QuantizedTensor:
        if arch.interleaved_rope:
            qt = _half_split(name, qt, heads, kv_heads)
        if arch.norm_offset and name.endswith("norm.weight") and qt.layout.family == "dense":
            stored = qt.buffers["weight"]
            shifted = stored.float() - arch.norm_offset  # before any cast: w + 1 in bfloat16 has lost w
            return QuantizedTensor(qt.layout, qt.shape, {"weight": shifted.to(stored.dtype)})
        return qt

    return transform


def _half_split(name: str, qt: QuantizedTensor, heads: int, kv_heads: int) -> QuantizedTensor:
    if ".self_attn.q_proj." in name:
        return unpermute_rows(qt, heads)
    if ".self_attn.k_proj." in name:
        return unpermute_rows(qt, kv_heads)
    return qt

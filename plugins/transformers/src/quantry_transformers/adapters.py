"""Adapters on a model: the weight that each of their parts changes, and the modules that add the change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantry import (
    AdaptedEmbedding,
    AdaptedExperts,
    AdaptedLinear,
    Adapter,
    Dense,
    LowRank,
    QuantizedTensor,
    ShapeError,
    UsageError,
    dtype_name,
    swap,
)
from quantry_transformers import names
from quantry_transformers.adapter_experts import Expert, expert_of, fused, stacked
from quantry_transformers.architectures import ARCHITECTURES, Architecture
from quantry_transformers.gguf_models import GGUF_MODELS
from quantry_transformers.weights import unpermute_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from quantry import Checkpoint

__all__ = ["AdapterReport", "Changes", "attach", "changes_of"]


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """An adapter in a model. weights: how many it changes. bytes: of its matrices as the model holds them."""

    path: str
    scale: float
    rank: int
    weights: int
    bytes: int


@dataclass
class Changes:
    """What adapters do to a model.

    by_module: path of a module, or of a part of an expert stack → its changes.
    """

    by_module: dict[str, list[LowRank]] = field(default_factory=dict)
    reports: list[AdapterReport] = field(default_factory=list)


def changes_of(
    adapters: Sequence[Adapter], checkpoint: Checkpoint, model: PreTrainedModel, dtype: torch.dtype
) -> Changes:
    """Each part of the adapters at the module it changes. model: may be without data.

    Raises UsageError for an adapter of another architecture and for the first part whose weight the model
    lacks, ShapeError for one that does not fit its weight.
    """
    changes = Changes()
    for adapter in adapters:
        parts = _parts_by_module(adapter, checkpoint, model)
        for path, part in parts.items():
            changes.by_module.setdefault(path, []).append(part._replace(scale=part.scale * adapter.scale))
        rank = max(part.rank for part in parts.values())
        size = sum(part.a.numel() + part.b.numel() for part in parts.values()) * dtype.itemsize
        changes.reports.append(
            AdapterReport(str(adapter.path), adapter.scale, rank, len(adapter.parts), size)
        )
    return changes


def attach(model: PreTrainedModel, changes: Changes, dtype: torch.dtype, device: str) -> None:
    """Put modules that add the changes around those of a filled and prepared model."""
    siblings: dict[str, list[AdaptedLinear]] = {}
    for path, parts in _on_built_modules(model, changes.by_module):
        base = model.get_submodule(path)
        if isinstance(base, nn.Embedding) or hasattr(base, "num_embeddings"):
            scale = getattr(base, "scale", getattr(base, "scalar_embed_scale", None)) or 1.0
            factor = float(torch.tensor(scale, dtype=dtype))  # rounded as the rows' own factor is
            parts = [part._replace(scale=part.scale * factor) for part in parts]
            swap(model, path, AdaptedEmbedding(base, parts, dtype, device))
        elif hasattr(base, "num_experts"):
            swap(model, path, AdaptedExperts(base, parts, dtype, device))
        else:
            adapted = AdaptedLinear(base, parts, dtype, device)
            swap(model, path, adapted)
            siblings.setdefault(path.rpartition(".")[0], []).append(adapted)
    for alike in siblings.values():
        AdaptedLinear.lay_together(alike)
    if changes.by_module:
        # transformers ties by the modules' names, which are others now, after every move
        model._tied_weights_keys = None
        model.all_tied_weights_keys = {}
    model.quantry_adapters = tuple(changes.reports)


def _parts_by_module(
    adapter: Adapter, checkpoint: Checkpoint, model: PreTrainedModel
) -> Mapping[str, LowRank]:
    """Of one adapter, under transformers' names and in its row order; those of single experts stacked."""
    arch = _architecture(adapter, checkpoint, model)
    has_old = any(".block_sparse_moe" in name for name, _ in model.named_modules())
    found: dict[str, LowRank] = {}
    experts: dict[Expert, dict[int, LowRank]] = {}
    for name, part in adapter.parts.items():
        weight = name if arch is None else names.to_hf(name, arch)
        stem, _, leaf = (weight or "").rpartition(".")
        if not has_old:
            stem = stem.replace(".block_sparse_moe.", ".mlp.")
        shape, expert, index = None, None, None
        if leaf == "weight":
            shape = _shape(model, stem)
            if shape is None:
                expert, index, shape = expert_of(stem, model)
        if shape is None:
            raise UsageError(
                f"is made for a weight that {type(model).__name__} lacks", file=adapter.path, tensor=name,
                hint="An adapter fits the model that it was trained on, of that size and kind only.",
            )  # fmt: skip
        if part.shape != shape:
            raise ShapeError(
                f"changes a weight of shape {list(part.shape)}, the model's is {list(shape)}",
                file=adapter.path, tensor=name,
            )  # fmt: skip
        if arch is not None and arch.interleaved_rope:
            part = _half_split(part, stem, model)
        if expert is not None and index is not None:
            experts.setdefault(expert, {})[index] = part
        else:
            found[stem] = part
    found.update((expert.path, stacked(expert, parts)) for expert, parts in experts.items())
    return found


def _architecture(adapter: Adapter, checkpoint: Checkpoint, model: PreTrainedModel) -> Architecture | None:
    """Whose names the parts have; None: the model's own."""
    if adapter.convention is None:
        return None
    if adapter.convention != "gguf":
        raise UsageError(f"has names of {adapter.convention!r}, which are not known", file=adapter.path)
    if checkpoint.format.name == "gguf":
        arch = ARCHITECTURES.get(checkpoint.architecture or "")
    else:
        row = GGUF_MODELS.get(model.config.model_type)
        arch = None if row is None else row.arch
    if arch is None:
        raise UsageError(
            f"has GGUF's names, and there are none for models of type {model.config.model_type!r}",
            file=adapter.path,
        )
    if adapter.architecture != arch.gguf:
        raise UsageError(
            f"is made for architecture {adapter.architecture!r}, the model is {arch.gguf!r}",
            file=adapter.path,
        )
    return arch


def _shape(model: nn.Module, path: str) -> tuple[int, ...] | None:
    """Of a linear layer's or an embedding's weight [out, in]; None for all else."""
    try:
        module: Any = model.get_submodule(path) if path else None
    except AttributeError:
        return None
    if isinstance(module, (nn.Linear, nn.Embedding)):
        return tuple(module.weight.shape)
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer, stored [in, out]
        return tuple(reversed(module.weight.shape))
    return None


def _half_split(part: LowRank, stem: str, model: PreTrainedModel) -> LowRank:
    """Rows of q and k in transformers' rotary order: as those of the weight, b's are moved."""
    config = model.config.get_text_config()
    if stem.endswith(".self_attn.q_proj"):
        heads = config.num_attention_heads
    elif stem.endswith(".self_attn.k_proj"):
        heads = config.num_key_value_heads
    else:
        return part
    b = QuantizedTensor(Dense(dtype_name(part.b.dtype)), tuple(part.b.shape), {"weight": part.b})
    return part._replace(b=unpermute_rows(b, heads).buffers["weight"])


def _on_built_modules(
    model: PreTrainedModel, by_module: Mapping[str, list[LowRank]]
) -> Iterator[tuple[str, list[LowRank]]]:
    """Paths in the filled model, in its order; halves of fused expert stacks as changes of the whole."""
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    placed: dict[str, list[LowRank]] = {}
    for path, parts in by_module.items():
        if path in order:
            placed.setdefault(path, []).extend(parts)
        else:
            whole, wide = fused(path, parts)
            placed.setdefault(whole, []).extend(wide)
    yield from sorted(placed.items(), key=lambda item: order[item[0]])

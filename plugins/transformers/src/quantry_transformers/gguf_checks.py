"""Whether a folder's tensors are those of its model, before any is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from quantry import FormatError, Shape
from quantry_transformers.build import skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quantry import Checkpoint
    from quantry_transformers.gguf_names import Origin

__all__ = ["check_shapes"]


def check_shapes(checkpoint: Checkpoint, made: Mapping[str, Origin], config: PreTrainedConfig) -> None:
    """made: as `origins` gives them. Raises FormatError naming the first tensor that is too many, of another
    shape, or missing; HeaderError for a configuration that transformers cannot build."""
    model, file = skeleton(config, torch.float32), checkpoint.source.path
    expected = _parts({name: tuple(p.shape) for name, p in model.state_dict(keep_vars=True).items()})
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    for origin in made.values():
        needed = expected.pop(origin.weight.replace(".block_sparse_moe.", ".mlp."), None)
        if needed is None:
            raise FormatError(
                f"{type(model).__name__} has no such parameter in this configuration",
                file=file,
                tensor=origin.stored[0],
            )
        found = checkpoint.entry(origin.stored[0]).shape
        if origin.is_stack:
            found = (len(origin.stored), *found)
        elif origin.is_part:
            found = (found[0], origin.rows, found[2])
        if found != needed:
            raise FormatError(
                f"has shape {list(found)}, {type(model).__name__} needs {list(needed)}",
                file=file,
                tensor=origin.stored[0],
            )
    if expected:
        raise FormatError(
            f"is missing; {type(model).__name__} needs it", file=file, tensor=next(iter(expected))
        )


def _parts(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """transformers' parameters by the names of `Origin.weight`: stacks of experts with gate and up apart."""
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for part in ("gate_proj", "up_proj"):
                found[f"{stem}.{part}.weight"] = (shape[0], shape[1] // 2, shape[2])
        elif leaf == "down_proj":
            found[f"{name}.weight"] = shape
        else:
            found[name] = shape
    return found

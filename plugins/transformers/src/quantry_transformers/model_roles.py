"""What each tensor of a checkpoint is to its model, judged from the modules transformers builds for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantry import HeaderError, role_of
from quantry_transformers.build import skeleton
from quantry_transformers.runtime import configured

if TYPE_CHECKING:
    from quantry import Checkpoint, Role

__all__ = ["roles_of"]


def roles_of(checkpoint: Checkpoint) -> Mapping[str, Role]:
    """Tensor name → role, of every parameter that the model has; {} for a model unknown to transformers.

    A matrix of another module than a linear layer or an embedding multiplies nothing that a kernel could
    serve, whatever it is called. Names still tell routers and position tables from their like.
    """
    try:
        config, weights = configured(checkpoint)
        model = skeleton(config, torch.float32)
    except HeaderError:
        return {}  # a model class that is not transformers' own, or a configuration it refuses
    head = model.get_output_embeddings()
    found: dict[str, Role] = {}
    for stem, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{stem}.{leaf}" if stem else leaf
            if name in weights:
                role = _role(name, module, parameter, module is head)
                found[weights.stored_name(name)] = role
    return found


def _role(name: str, module: nn.Module, parameter: Any, head: bool) -> Role:
    by_name = role_of(name, tuple(parameter.shape))
    if isinstance(module, nn.Linear) and name.endswith(".weight"):
        if head:
            return "head"
        return by_name if by_name in ("router", "linear") else "linear"
    if isinstance(module, nn.Embedding) and name.endswith(".weight"):
        return by_name if by_name == "position" else "embedding"
    return by_name if by_name in ("experts", "router") else "other"

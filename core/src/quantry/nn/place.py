"""Put packed modules into a model, and get every one ready to run."""

from __future__ import annotations

import torch
from torch import nn

from quantry.errors import UsageError, nearest
from quantry.kernel import NumericsMode
from quantry.measurement import measure
from quantry.nn.packed import PackedModule
from quantry.source import release_pages

__all__ = ["prepare", "swap"]


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule `name` ("layers.0.mlp.up_proj"). Raises UsageError when there is none."""
    parent, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        owner.get_submodule(leaf)
    except AttributeError:
        known = [n for n, _ in model.named_modules() if n]
        raise UsageError(f"the model has no module {name!r}", hint=nearest(name, known)) from None
    module.train(owner.training)
    setattr(owner, leaf, module)


def prepare(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    numerics: NumericsMode | None = None,
    reference: bool | None = None,
) -> nn.Module:
    """Resolve and repack every packed module of `model`, one tensor at a time; every loader calls this last.

    Where the policy says `measure="on"`, kernels are timed first, within 2 s for the whole model.
    Weights that lie in a mapped file leave it as they are repacked: the model is never in memory twice.
    Raises NoKernelError naming the first tensor that nothing can run.
    """
    for module in model.modules():
        if isinstance(module, PackedModule):
            for buffer in module.buffers():
                release_pages(buffer)  # what checks and row moves have touched so far
    uses = [m.weight_use(dtype, numerics, reference) for m in model.modules() if isinstance(m, PackedModule)]
    measure([use for use in uses if use.policy.measure == "on"])
    for name, module in model.named_modules():
        if isinstance(module, PackedModule):
            use = module.weight_use(dtype, numerics, reference)
            module.settle(use, tensor=f"{name}.weight" if name else "weight")
    return model

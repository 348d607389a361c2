"""What ISQ reads: the weights of a checkpoint under the model's names, stacks of experts as UQFF has them."""

from __future__ import annotations

from quantry.checkpoint import Checkpoint
from quantry.errors import PluginError
from quantry.format import WeightSource
from quantry.isq_experts import unfused
from quantry.plugins import registry
from quantry.runtime import Exported

__all__ = ["exported", "weights_of"]


def weights_of(ckpt: Checkpoint) -> WeightSource:
    """The weights that are planned and packed. Raises PluginError as `exported` does."""
    return unfused(exported(ckpt).weights if ckpt.format.own_names else ckpt)


def exported(ckpt: Checkpoint) -> Exported:
    """A checkpoint in a format with names of its own, as the first runtime that knows the model names it.

    Raises PluginError where no installed one does.
    """
    for runtime in registry().runtimes:
        if runtime.why_not(ckpt) is None and (found := runtime.export(ckpt)) is not None:
            return found
    raise PluginError(
        f"names its tensors in {ckpt.format.name}'s own way, and no installed runtime knows the model's",
        file=ckpt.source.path,
        hint="pip install quantry-transformers",
    )

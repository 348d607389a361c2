"""`quantry.load_model`: a checkpoint and the runtime that can build it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantry.adapter import read_adapter
from quantry.checkpoint import open_checkpoint
from quantry.errors import PluginError, UsageError
from quantry.kernel import NumericsMode
from quantry.plugins import registry

if TYPE_CHECKING:
    import torch

__all__ = ["load_model"]


def load_model(
    model: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    numerics: NumericsMode = "strict",
    *,
    reference: bool = False,
    isq: str | None = None,
    adapter: str | Path | Sequence[str | Path] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """(model, tokenizer) with every weight packed and its kernels chosen.

    adapter: PATH or PATH=SCALE of a LoRA, or several; their changes are added beside the packed weights.
    Raises PluginError when no runtime is installed, UsageError with each runtime's reason when none fits,
    and what `read_adapter` raises.
    """
    given = [adapter] if isinstance(adapter, (str, Path)) else adapter or ()
    adapters = [read_adapter(path) for path in given]
    ckpt = open_checkpoint(model, revision)
    runtimes = registry().runtimes
    if not runtimes:
        failed = [f"{p.name} ({p.dist}): {p.error}" for p in registry().failures]
        raise PluginError(
            "no runtime plugin is installed that builds models",
            file=ckpt.source.path,
            hint="\n".join(["pip install quantry-transformers", *failed]),
        )
    reasons = []
    for runtime in runtimes:
        reason = runtime.why_not(ckpt)
        if reason is None:
            return runtime.load(
                ckpt,
                device=device,
                dtype=dtype,
                numerics=numerics,
                reference=reference,
                isq=isq,
                adapters=adapters,
                trust_remote_code=trust_remote_code,
            )
        reasons.append(f"{runtime.name}: {reason}")
    raise UsageError("no runtime can build it", file=ckpt.source.path, hint="\n".join(reasons))

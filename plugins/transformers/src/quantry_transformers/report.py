"""What a loaded model holds: figures of `quantry run --json`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

from quantry import AdaptedEmbedding, AdaptedExperts, AdaptedLinear, PackedModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["adapters_in_use", "kernels_in_use", "weights_bytes"]


def kernels_in_use(model: PreTrainedModel) -> dict[str, int]:
    """Kernel → number of weights it multiplies or looks up at one row, the plain torch layers included."""
    counts: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, PackedModule):
            counts.update(plan[0].name for plan in module.kernels.values() if plan[0] is not None)
        elif isinstance(module, nn.Linear):
            counts["torch.linear"] += 1
        elif isinstance(module, nn.Embedding):
            counts["torch.embedding"] += 1
    return dict(counts.most_common())


def adapters_in_use(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Path, scale, rank, changed weights and bytes of each adapter."""
    return [asdict(report) for report in getattr(model, "quantry_adapters", ())]


def weights_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers as they are stored, each storage once, adapters left out."""
    adapted = (AdaptedLinear, AdaptedEmbedding, AdaptedExperts)
    added = {t for m in model.modules() if isinstance(m, adapted) for t in m.buffers(recurse=False)}
    stored = [t for t in (*model.parameters(), *model.buffers()) if not t.is_meta and t not in added]
    return sum({t.data_ptr(): t.nbytes for t in stored}.values())

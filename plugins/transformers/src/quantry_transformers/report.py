"""What a loaded model holds and what the process cost: the figures of `quantry run --json`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from quantry import PackedModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["kernels_in_use", "peak_rss_bytes", "weights_bytes"]


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


def weights_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers as they are stored, each storage once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers()) if not t.is_meta}
    return sum(tensors.values())


def peak_rss_bytes() -> int:
    """Highest resident memory of this process so far; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

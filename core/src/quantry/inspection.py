"""What a checkpoint is: format, architecture, layouts and sizes, from headers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from quantry.checkpoint import Checkpoint, open_checkpoint

__all__ = ["inspect"]


def inspect(model: str | Path | Checkpoint) -> dict[str, Any]:
    """The JSON document of `quantry inspect`: parameters and bytes count every tensor."""
    ckpt = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    layouts: dict[str, dict[str, int]] = {}
    tensors = []
    for entry in ckpt.entries():
        numel = math.prod(entry.shape)
        row = layouts.setdefault(str(entry.layout), {"tensors": 0, "bytes": 0, "parameters": 0})
        row["tensors"] += 1
        row["bytes"] += entry.nbytes
        row["parameters"] += numel
        tensors.append(
            {
                "name": entry.name,
                "layout": str(entry.layout),
                "shape": list(entry.shape),
                "bytes": entry.nbytes,
                "bits_per_weight": 8 * entry.nbytes / numel if numel else 0.0,
                "ops": list(entry.ops),
            }
        )
    parameters = sum(row["parameters"] for row in layouts.values())
    size = sum(row["bytes"] for row in layouts.values())
    return {
        "path": str(ckpt.source.path),
        "format": ckpt.format.name,
        "evidence": ckpt.detection.why,
        "architecture": ckpt.architecture,
        "methods": sorted({entry.layout.family for entry in ckpt.entries()}),
        "parameters": parameters,
        "bytes": size,
        "bits_per_weight": 8 * size / parameters if parameters else 0.0,
        "layouts": dict(sorted(layouts.items(), key=lambda item: -item[1]["bytes"])),
        "tensors": tensors,
    }

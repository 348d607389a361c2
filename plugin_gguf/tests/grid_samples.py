"""Inputs for the tests of the grid encoders: rows that llama.cpp takes, importances with holes."""

from __future__ import annotations

import numpy as np
from ggml_samples import float_rows

# squares overflow: llama.cpp finds no neighbour then and ends the process
OVERFLOWING = ("huge outlier", "1e30", "1e38")

IMPORTANCES = ("positive", "holes", "zero")


def grid_rows(columns: int, seed: int = 0, repeat: int = 1) -> dict[str, np.ndarray]:
    """Kind of numbers → float32 rows [*, columns] with finite squares."""
    return {k: v for k, v in float_rows(columns, seed, repeat).items() if k not in OVERFLOWING}


def importance_of(kind: str, columns: int) -> np.ndarray:
    """float32 [columns] >= 0 of one of IMPORTANCES."""
    rng = np.random.default_rng(5)
    values = rng.random(columns, np.float32) ** 4
    if kind == "holes":
        values[rng.random(columns) < 0.3] = 0
        values[::50] = 1e4
    return np.zeros(columns, np.float32) if kind == "zero" else values

"""Weights [256, 256] that take a quantizer to its corners, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["KINDS", "weight", "worked_example"]

SIZE = 256


def worked_example() -> Tensor:
    """The weight whose bytes mistral.rs' behaviour is documented by."""
    r, c = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
    return ((31 * r + 17 * c) % 97 - 48).float() / 64


def _normal(scale: float) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((SIZE, SIZE)).astype(np.float32) * np.float32(scale)


def _ties() -> np.ndarray:
    return (np.random.default_rng(2).integers(-64, 65, (SIZE, SIZE)) / 128 + 1 / 256).astype(np.float32)


def _spread() -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.ldexp(_normal(1), rng.integers(-40, 3, (SIZE, SIZE))).astype(np.float32)


def _outlier() -> np.ndarray:
    w = _normal(0.02)
    w[:, :64] = 0
    w[:16] = 0.5
    w[3, 5] = 100
    return w


KINDS = {
    "small": lambda: _normal(0.02),
    "wide": lambda: _normal(5),
    "ties": _ties,
    "spread": _spread,
    "outlier": _outlier,
    "zero": lambda: np.zeros((SIZE, SIZE), np.float32),
    "constant": lambda: np.full((SIZE, SIZE), 3, np.float32),
    "huge": lambda: _normal(1e30),
}


def weight(kind: str) -> Tensor:
    return torch.from_numpy(KINDS[kind]())

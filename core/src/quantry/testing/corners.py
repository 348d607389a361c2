"""Weights [256, 256] that take a quantizer to its corners, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["CORNERS", "CORNER_SIZE", "corner_weight", "tensor_digest", "worked_example"]

CORNER_SIZE = 256
_SHAPE = (CORNER_SIZE, CORNER_SIZE)


def worked_example() -> Tensor:
    """The weight whose bytes mistral.rs' behaviour is documented by: ((31 r + 17 c) mod 97 - 48) / 64."""
    r, c = torch.arange(CORNER_SIZE)[:, None], torch.arange(CORNER_SIZE)[None]
    return ((31 * r + 17 * c) % 97 - 48).float() / 64


def _normal(scale: float) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(_SHAPE).astype(np.float32) * np.float32(scale)


def _ties() -> np.ndarray:
    return (np.random.default_rng(2).integers(-64, 65, _SHAPE) / 128 + 1 / 256).astype(np.float32)


def _spread() -> np.ndarray:
    rng = np.random.default_rng(3)
    spread: np.ndarray = np.ldexp(_normal(1), rng.integers(-40, 3, _SHAPE)).astype(np.float32)
    return spread


def _outlier() -> np.ndarray:
    w = _normal(0.02)
    w[:, :64] = 0
    w[:16] = 0.5
    w[3, 5] = 100
    return w


CORNERS: dict[str, Callable[[], np.ndarray]] = {
    "small": lambda: _normal(0.02),
    "wide": lambda: _normal(5),
    "ties": _ties,
    "spread": _spread,
    "outlier": _outlier,
    "zero": lambda: np.zeros(_SHAPE, np.float32),
    "constant": lambda: np.full(_SHAPE, 3, np.float32),
    "huge": lambda: _normal(1e30),
}


def corner_weight(kind: str) -> Tensor:
    """The float32 weight of a kind that CORNERS names."""
    return torch.from_numpy(CORNERS[kind]())


def tensor_digest(t: Tensor) -> str:
    """The first 16 digits of SHA-256 over dtype, shape and bytes, as golden files hold it."""
    raw = t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{t.dtype}{list(t.shape)}".encode() + raw).hexdigest()[:16]

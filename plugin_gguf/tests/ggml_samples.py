"""Inputs for the tests of ggml blocks: bytes that decode badly, rows that encode badly."""

from __future__ import annotations

import numpy as np

from quantry_gguf.types import BY_NAME

# byte offsets of the f16 fields of a block (ggml-common.h); iq1_m spreads its own over four words
HALVES = {
    **dict.fromkeys(["q4_0", "q5_0", "q8_0", "iq4_nl", "q1_0", "q2_0"], (0,)),
    **dict.fromkeys(["q4_1", "q5_1", "q8_1", "q4_k", "q5_k"], (0, 2)),
    **dict.fromkeys(["iq4_xs", "iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"], (0,)),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q6_k": (208,),
    "tq1_0": (52,),
    "tq2_0": (64,),
}

# zeros, smallest and largest subnormal, smallest and largest normal, infinities, NaNs
SPECIAL_HALVES = np.frombuffer(
    bytes.fromhex("0000 0080 0100 0180 ff03 0004 ff7b fffb 007c 00fc 017c 007e ffff"), np.dtype("<u2")
)


def raw_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, block_bytes]: `count` random blocks, all 0, all 255, random ones with special scales."""
    rng = np.random.default_rng(seed)
    size = BY_NAME[name].block_bytes
    constant = np.array([[0], [255]], np.uint8).repeat(size, 1)
    parts = [rng.integers(0, 256, (count, size), np.uint8), constant]
    for at in HALVES.get(name, ()):
        blocks = rng.integers(0, 256, (len(SPECIAL_HALVES), size), np.uint8)
        blocks[:, at : at + 2] = SPECIAL_HALVES.view(np.uint8).reshape(-1, 2)
        parts.append(blocks)
    if name in ("mxfp4", "nvfp4"):  # every scale byte
        blocks = rng.integers(0, 256, (256, size), np.uint8)
        blocks[:, 0] = np.arange(256)
        parts.append(blocks)
    if name == "iq1_m":
        blocks = rng.integers(0, 256, (len(SPECIAL_HALVES), size), np.uint8)
        for word in range(4):
            nibble = (SPECIAL_HALVES >> 4 * word & 15).astype(np.uint8)
            blocks[:, 49 + 2 * word] = blocks[:, 49 + 2 * word] & 15 | nibble << 4
        parts.append(blocks)
    return np.concatenate(parts)


def float_rows(columns: int, seed: int = 0, repeat: int = 1) -> dict[str, np.ndarray]:
    """Kind of numbers → float32 rows [*, columns] without NaN or Inf."""
    rng = np.random.default_rng(seed)
    shape = (repeat, columns)

    def normal(scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    outlier = normal()
    outlier[:, :: max(1, columns // 3)] = 1e4
    holes = normal()
    holes.reshape(-1, 32)[::3] = 0
    scales = np.exp(2 * rng.standard_normal((repeat, columns // 32)))
    huge = normal()
    huge[:, columns // 2] = 3e38
    return {
        "normal": normal(0.02),
        "student-t": rng.standard_t(2, shape).astype(np.float32),
        "log-normal scale": (normal() * scales.repeat(32, 1)).astype(np.float32),
        "positive": np.abs(normal()),
        "negative": -np.abs(normal()),
        "offset": normal() + np.float32(5),
        "constant": np.full(shape, -0.37, np.float32),
        "constant positive": np.full(shape, 0.37, np.float32),
        "zeros": np.zeros(shape, np.float32),
        "negative zeros": np.full(shape, -0.0, np.float32),
        "ties": (rng.integers(-8, 9, shape) * 0.5).astype(np.float32),
        "two values": np.where(rng.random(shape) < 0.5, np.float32(-1), np.float32(1)),
        "one outlier": outlier,
        "huge outlier": huge,
        "zero blocks": holes,
        "1e-6": normal(1e-6),
        "1e-15": normal(1e-15),
        "denormal": normal(1e-40),
        "least denormal": (rng.integers(-2, 3, shape) * 1e-45).astype(np.float32),
        "3000": normal(3000),
        "1e30": normal(1e30),
        "1e38": rng.uniform(-3e38, 3e38, shape).astype(np.float32),
    }

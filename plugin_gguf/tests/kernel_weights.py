"""Random weights of any ggml type for the tests of native kernels: every code, scales of a chosen size."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from ggml_samples import HALVES

from quantry import QuantizedTensor
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.panel import CONVERSIONS, PLANES, GgmlPanel
from quantry_gguf.types import BY_NAME, TYPES

KINDS = [t.name for t in TYPES if not t.is_dense]
MINIMUMS = {"q4_1": 0, "q5_1": 0, "q4_k": 0, "q5_k": 0, "q2_k": 80}  # where d of value = d·q ± m stands


class Weight(NamedTuple):
    """A random weight: as stored, as the kernels take it, as float64, and the terms that a kernel adds."""

    blocks: np.ndarray
    planes: dict[str, torch.Tensor]
    dense: np.ndarray
    terms: np.ndarray

    @property
    def addresses(self) -> tuple[int, int | None, int | None, int]:
        """codes, high and meta, and the bytes of all; blocks in file order stand for codes."""
        high, meta = self.planes.get("high"), self.planes.get("meta")
        size = sum(p.nbytes for p in self.planes.values())
        return self.planes["codes"].data_ptr(), _address(high), _address(meta), size


@cache
def weight(kind: str, rows: int, columns: int, magnitude: float = 1e-3) -> Weight:
    """Random blocks with scales of about `magnitude`."""
    seed = rows * 7919 + columns + BY_NAME[kind].id
    return made(kind, random_blocks(kind, (rows, columns // BY_NAME[kind].block), magnitude, seed))


def made(kind: str, blocks: np.ndarray) -> Weight:
    """The weight of blocks uint8 [rows, n, block bytes]."""
    rows, columns = blocks.shape[0], blocks.shape[1] * BY_NAME[kind].block
    dense = decoded(kind, blocks)
    terms = np.abs(dense)
    if kind in MINIMUMS:
        without_d = blocks.copy()
        without_d[..., MINIMUMS[kind] : MINIMUMS[kind] + 2] = 0
        minimum = decoded(kind, without_d)
        terms = np.abs(dense - minimum) + np.abs(minimum)
    flat = torch.from_numpy(blocks.reshape(rows, -1).copy())
    if kind not in PLANES:
        return Weight(blocks, {"codes": flat}, dense, terms)
    qt = QuantizedTensor(GgmlBlocks(kind), (rows, columns), {"blocks": flat})
    return Weight(blocks, dict(CONVERSIONS[0].convert(qt, GgmlPanel(kind)).buffers), dense, terms)


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The definition, which test_oracle.py proves equal to llama.cpp's, as float64 [rows, columns]."""
    rows, columns = blocks.shape[0], blocks.shape[1] * BY_NAME[kind].block
    flat = torch.from_numpy(np.ascontiguousarray(blocks.reshape(rows, -1)))
    return GgmlBlocks(kind).dequantize({"blocks": flat}, (rows, columns)).double().numpy()


def random_blocks(kind: str, shape: tuple[int, int], magnitude: float, seed: int) -> np.ndarray:
    """uint8 [*shape, block bytes]: random codes, scales normal times `magnitude` (or its power of two)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape, BY_NAME[kind].block_bytes), dtype=np.uint8)
    for at in HALVES.get(kind, ()):
        halves = (rng.standard_normal(shape) * magnitude).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    if kind == "q8_k":
        blocks[..., :4] = (rng.standard_normal((*shape, 1)) * magnitude).astype(np.float32).view(np.uint8)
    elif kind == "mxfp4":
        blocks[..., 0] = 0 if magnitude == 0 else 127 + np.log2(magnitude) + rng.integers(-3, 4, shape)
    elif kind == "nvfp4":
        most = 0 if magnitude == 0 else 0x1F if magnitude < 1 else 0x7F  # 2^-4, 240
        blocks[..., :4] &= np.uint8(most)
    elif kind == "iq1_m":  # d's nibbles lie in the top of four words
        halves = (rng.standard_normal(shape) * magnitude).astype(np.float16).view(np.uint16)
        for word in range(4):
            nibble = (halves >> 4 * word & 15).astype(np.uint8) << 4
            blocks[..., 49 + 2 * word] = blocks[..., 49 + 2 * word] & 15 | nibble
    return blocks


def rounding_block(kind: str) -> int:
    """Columns of x that share an int8 scale."""
    return 256 if "int8/256" in GgmlBlocks(kind).published_activations else 32


def _address(t: torch.Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()

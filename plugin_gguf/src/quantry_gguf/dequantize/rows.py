"""Blocks of any ggml type to float32, with bounded temporaries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantry_gguf.dequantize import block32, iq, k, ternary
from quantry_gguf.types import BY_NAME

__all__ = ["dequantize_blocks"]

# temporaries hold up to 8 values of 4 bytes per element: 2^20 elements keep them near 32 MB
_CHUNK_ELEMENTS = 1 << 20

_DEQUANTIZE: dict[str, Callable[[Tensor], Tensor]] = {
    "q4_0": block32.q4_0,
    "q4_1": block32.q4_1,
    "q5_0": block32.q5_0,
    "q5_1": block32.q5_1,
    "q8_0": block32.q8_0,
    "q8_1": block32.q8_1,
    "iq4_nl": block32.iq4_nl,
    "mxfp4": block32.mxfp4,
    "nvfp4": block32.nvfp4,
    "q1_0": block32.q1_0,
    "q2_0": block32.q2_0,
    "q2_k": k.q2_k,
    "q3_k": k.q3_k,
    "q4_k": k.q4_k,
    "q5_k": k.q5_k,
    "q6_k": k.q6_k,
    "q8_k": k.q8_k,
    "iq4_xs": k.iq4_xs,
    "iq1_s": iq.iq1_s,
    "iq1_m": iq.iq1_m,
    "iq2_xxs": iq.iq2_xxs,
    "iq2_xs": iq.iq2_xs,
    "iq2_s": iq.iq2_s,
    "iq3_xxs": iq.iq3_xxs,
    "iq3_s": iq.iq3_s,
    "tq1_0": ternary.tq1_0,
    "tq2_0": ternary.tq2_0,
}


def dequantize_blocks(name: str, blocks: Tensor) -> Tensor:
    """float32 [n·block] for blocks uint8 [n, block_bytes] of the ggml type `name`, on the device of `blocks`.

    Equal to ggml's `to_float` bit for bit, NaN payloads aside.
    """
    block = BY_NAME[name].block
    function = _DEQUANTIZE[name]
    out = torch.empty(len(blocks), block, dtype=torch.float32, device=blocks.device)
    step = _CHUNK_ELEMENTS // block
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        out[part] = function(blocks[part])
    return out.flatten()

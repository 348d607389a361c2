"""bitsandbytes' 4-bit linear layer on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from quantry.bench.peers.peer import Call, Peer, PeerWeight, load, width_of
from quantry.dtypes import torch_dtype
from quantry.layout import Layout, Shape

__all__ = ["BitsAndBytesPeer"]

_BLOCK = 64


class BitsAndBytesPeer(Peer):
    """matmul_4bit on nf4, float32 absmax, blocks of 64: the library's defaults."""

    name, dist, modules, install = (
        "bitsandbytes",
        "bitsandbytes",
        ("bitsandbytes",),
        "pip install bitsandbytes",
    )

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """nf4 for every 4-bit layout."""
        if width_of(layout) != 4 or shape[0] * shape[1] % _BLOCK:
            return
        yield _nf4(shape, "matmul_4bit", "f32")
        if load("bitsandbytes.functional").has_avx512bf16() and shape[0] % 32 == 0:
            yield _nf4(shape, "Linear4bit", "bf16")


def _nf4(shape: Shape, kernel: str, dtype: str) -> PeerWeight:
    def make(count: int) -> Callable[[int], Call]:
        import torch

        bnb, functional = load("bitsandbytes"), load("bitsandbytes.functional")
        made: list[tuple[Any, Any]] = []
        for _ in range(count):
            weight = 0.02 * torch.randn(shape)
            codes, state = functional.quantize_4bit(weight, blocksize=_BLOCK, quant_type="nf4")
            if kernel == "Linear4bit":  # the layer's own packing for AVX-512 BF16, made at its first call
                codes, state = functional._convert_weight_packed_for_cpu(codes, state)
            made.append((codes, state))

        def at(m: int) -> Call:
            x = torch.randn(m, shape[-1]).to(torch_dtype(dtype))
            return lambda i: bnb.matmul_4bit(x, made[i][0], made[i][1])

        return at

    nbytes = shape[0] * shape[1] // 2 + shape[0] * shape[1] // _BLOCK * 4
    return PeerWeight(kernel, "nf4 g64", "exact", "exact", dtype, dtype, nbytes, make)

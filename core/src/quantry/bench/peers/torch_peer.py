"""torch's own products: dense, int4pack, int8 by int8."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from quantry.bench.peers.peer import Call, Peer, PeerWeight, group_of, width_of
from quantry.layout import Layout, Shape

if TYPE_CHECKING:
    import torch

__all__ = ["TorchPeer"]


class TorchPeer(Peer):
    """What is there without any plugin."""

    name, dist, modules, install = "torch", "torch", ("torch",), "pip install torch"

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """f32 and bf16 for every layout, int4pack for 4 bit, _int_mm for 8 bit."""
        import torch

        yield _dense("f32", torch.float32, shape)
        yield _dense("bf16", torch.bfloat16, shape)
        n, k = shape
        group = group_of(layout)
        if width_of(layout) == 4 and group in (32, 64, 128, 256) and k % group == 0 and n % 64 == 0:
            yield _int4pack(shape, group)
        if width_of(layout) == 8:
            yield _int_mm(shape)


def _dense(dtype: str, kind: torch.dtype, shape: Shape) -> PeerWeight:
    def make(count: int) -> Callable[[int], Call]:
        import torch
        from torch.nn import functional as F

        held = [torch.full(shape, 0.01, dtype=kind) for _ in range(count)]

        def at(m: int) -> Call:
            x = torch.randn(m, shape[-1]).to(kind)
            return lambda i: F.linear(x, held[i])

        return at

    nbytes = shape[0] * shape[1] * kind.itemsize
    return PeerWeight("F.linear", f"dense:{dtype}", "exact", "exact", dtype, dtype, nbytes, make)


def _int4pack(shape: Shape, group: int) -> PeerWeight:
    n, k = shape

    def make(count: int) -> Callable[[int], Call]:
        import torch

        codes = torch.randint(0, 16, shape, dtype=torch.int32)
        scales = torch.full((k // group, n, 2), 0.01, dtype=torch.bfloat16)
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        held = [(pack(codes, 1), scales.clone()) for _ in range(count)]
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu

        def at(m: int) -> Call:
            x = torch.randn(m, k).to(torch.bfloat16)
            return lambda i: multiply(x, held[i][0], group, held[i][1])

        return at

    nbytes = n * k // 2 + n * k // group * 4
    return PeerWeight("int4pack", f"int4 g{group}", "exact", "exact", "bf16", "bf16", nbytes, make)


def _int_mm(shape: Shape) -> PeerWeight:
    def make(count: int) -> Callable[[int], Call]:
        import torch

        held = [torch.ones(shape, dtype=torch.int8) for _ in range(count)]

        def at(m: int) -> Call:
            x = torch.ones(m, shape[-1], dtype=torch.int8)
            return lambda i: torch._int_mm(x, held[i].t())

        return at

    nbytes = shape[0] * shape[1]
    return PeerWeight("_int_mm", "int8 per row", "int8/row", "fast", "int8", "int8", nbytes, make)

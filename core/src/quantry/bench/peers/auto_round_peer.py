"""auto-round-lib: Intel's kernels behind AutoRound's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quantry.bench.peers.peer import Call, Peer, PeerWeight, group_of, load, width_of
from quantry.layout import Layout, Shape

__all__ = ["AutoRoundPeer"]


class AutoRoundPeer(Peer):
    """woqgemm on symmetric integer weights, arithmetic left to the library ("auto")."""

    name, dist, modules, install = (
        "auto-round-lib",
        "auto-round-lib",
        ("auto_round_kernel",),
        "pip install auto-round-lib",
    )

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """2, 4 and 8 bit in groups of 32, 64 and 128."""
        bits, group = width_of(layout), group_of(layout)
        if bits in (2, 4, 8) and group in (32, 64, 128) and shape[1] % group == 0:
            yield _symmetric(shape, bits, group)


def _symmetric(shape: Shape, bits: int, group: int) -> PeerWeight:
    n, k = shape

    def make(count: int) -> Callable[[int], Call]:
        import torch

        ark, half = load("auto_round_kernel"), 1 << (bits - 1)
        codes = torch.randint(-half, half, (k, n), dtype=torch.int8)
        scales = torch.full((k // group, n), 0.01)
        none = torch.empty(0, dtype=torch.int8)
        rest = ("auto", f"int{bits}", "fp32", False)
        held = [ark.repack_quantized_weight(codes, scales, none, group, *rest) for _ in range(count)]

        def at(m: int) -> Call:
            x, bias = torch.randn(m, k), torch.empty(0)
            return lambda i: ark.woqgemm(x, held[i], bias, n, k, group, *rest)

        return at

    nbytes = n * k * bits // 8 + n * k // group * 4
    return PeerWeight("woqgemm", f"int{bits} g{group}", "int8", "fast", "f32", "int8", nbytes, make)

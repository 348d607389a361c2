"""MLX on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quantry.bench.peers.peer import Call, Peer, PeerWeight, group_of, load, width_of
from quantry.layout import Layout, Shape

__all__ = ["MlxPeer"]


class MlxPeer(Peer):
    """quantized_matmul, as LM Studio's and mlx-lm's models use it."""

    name, dist, modules, install = "mlx", "mlx", ("mlx.core",), "pip install 'mlx[cpu]'"

    def why_not(self) -> str | None:
        """Declines where the package is there and its library is not."""
        try:
            load("mlx.core")
        except ImportError as e:
            return f"mlx is not installed ({e}): {self.install}"
        return None

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """2, 3, 4, 6 and 8 bit in groups of 32, 64 and 128."""
        bits, group = width_of(layout), group_of(layout)
        if bits in (2, 3, 4, 6, 8) and group in (32, 64, 128) and shape[1] % group == 0:
            yield _affine(shape, bits, group)


def _affine(shape: Shape, bits: int, group: int) -> PeerWeight:
    n, k = shape

    def make(count: int) -> Callable[[int], Call]:
        mx = load("mlx.core")
        made = mx.quantize(mx.random.normal((n, k)) * 0.02, group_size=group, bits=bits)
        held = [[mx.array(part) + 0 for part in made] for _ in range(count)]
        mx.eval(held)
        how = {"transpose": True, "group_size": group, "bits": bits}

        def at(m: int) -> Call:
            x = mx.random.normal((m, k))
            mx.eval(x)
            return lambda i: mx.eval(mx.quantized_matmul(x, *held[i], **how))

        return at

    nbytes = n * k * bits // 8 + 2 * 4 * n * k // group
    return PeerWeight(
        "quantized_matmul", f"int{bits} g{group}", "exact", "exact", "f32", "f32", nbytes, make, most_rows=16
    )

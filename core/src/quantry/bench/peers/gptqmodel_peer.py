"""GPTQModel's fused int4 kernel for AVX-512 BF16."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from quantry.bench.peers.peer import Call, Peer, PeerWeight, group_of, load, width_of
from quantry.devices import cpu_features
from quantry.layout import Layout, Shape

__all__ = ["GptqModelPeer"]

_SOURCES = "int4_qzero_group_scaled_cpu"
_OPS = f"gptqmodel_{_SOURCES}"
_FLAGS = ["-O3", "-std=c++20", "-fopenmp", "-mfma", "-mf16c"]  # as gptqmodel/utils/cpp.py has them
_FLAGS += [f"-mavx512{name}" for name in ("f", "bf16", "vl", "dq", "bw", "vbmi")]


class GptqModelPeer(Peer):
    """Compiled from the sources that its package ships, as GPTQModel does at first use."""

    name, dist, modules = "gptqmodel", "gptqmodel", ("gptqmodel_ext",)
    install = "pip install --no-deps gptqmodel"

    def why_not(self) -> str | None:
        """Declines where the processor lacks the instructions too."""
        if "avx512_bf16" not in cpu_features()[1]:
            return "gptqmodel's CPU kernel needs AVX-512 BF16"
        return super().why_not()

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """4 bit in groups that divide the columns."""
        group = group_of(layout)
        if width_of(layout) == 4 and group in (32, 64, 128) and shape[1] % group == 0 and shape[0] % 32 == 0:
            yield _grouped(shape, group)


def _grouped(shape: Shape, group: int) -> PeerWeight:
    n, k = shape

    def make(count: int) -> Callable[[int], Call]:
        import torch

        run = _extension().gemm_int4_qzero_group_scaled_cpu_forward
        zeros = torch.full((k // group, n), 8, dtype=torch.uint8)
        scales = torch.full((k // group, n), 0.01)
        held = [
            (torch.randint(0, 256, (n, k // 2), dtype=torch.uint8), zeros.clone(), scales.clone())
            for _ in range(count)
        ]

        def at(m: int) -> Call:
            x = torch.randn(m, k).to(torch.bfloat16)
            return lambda i: run(x, *held[i], group, None)

        return at

    nbytes = n * k // 2 + n * k // group * 5  # a float32 scale and a byte of zero for each group
    return PeerWeight("avx512_bf16", f"int4 g{group}", "exact", "exact", "bf16", "bf16", nbytes, make)


@functools.cache
def _extension() -> Any:
    import torch

    spec = importlib.util.find_spec("gptqmodel_ext")
    assert spec is not None  # why_not asked
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / _SOURCES
    load("torch.utils.cpp_extension").load(
        _OPS,
        [str(path) for path in sorted(folder.glob("*.cpp"))],
        extra_cflags=_FLAGS,
        extra_ldflags=["-fopenmp"],
        extra_include_paths=[str(folder)],
        is_python_module=False,
    )
    return getattr(torch.ops, _OPS)

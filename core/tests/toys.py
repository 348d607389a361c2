"""A toy plugin: int8 rows in groups of 32 with one scale a row, quantizers of it, and a UQFF tag for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import quantry
from quantry import BufferSpec, HeaderError, Layout, QuantizedTensor, Quantizer, UqffCodec, hookimpl

TAG = 200


@dataclass(frozen=True, slots=True)
class ToyRows(Layout):
    family: ClassVar[str] = "toy"
    group: int

    def why_not(self, shape):
        if len(shape) < 2:
            return "a matrix is needed"
        return None if shape[-1] % self.group == 0 else f"{shape[-1]} columns are no multiple of {self.group}"

    def buffers(self, shape):
        return {"codes": BufferSpec("i8", shape), "scales": BufferSpec("f32", shape[:-1])}

    def dequantize(self, buffers, shape):
        return buffers["codes"].float() * buffers["scales"].unsqueeze(-1)

    def step(self, dim):
        return 1 if dim == -2 else None

    def narrow(self, buffers, shape, dim, start, length):
        return {name: b.narrow(len(shape) - 2, start, length) for name, b in buffers.items()}


class Toy(Quantizer):
    row_block = 2

    def __init__(
        self, name, group, fallback=(), sensitive=None, width=None, priority=0, row_block=2, needs="none"
    ):
        self.name, self.group, self.fallback, self.sensitive = name, group, fallback, sensitive
        self.width, self.priority, self.row_block, self.needs = width, priority, row_block, needs

    def why_not(self, shape, dtype):
        return ToyRows(self.group).why_not(shape)

    def layout_for(self, shape, dtype):
        return ToyRows(self.group)

    def quantize(self, weight, layout, stats=None):
        w = weight.float() if stats is None else weight.float() * (1 + 0 * stats.float().sum())
        scale = w.abs().amax(-1) / 127
        codes = torch.round(w / scale.clamp_min(1e-30).unsqueeze(-1)).to(torch.int8)
        return QuantizedTensor(layout, tuple(weight.shape), {"codes": codes, "scales": scale})


class ToyCodec(UqffCodec):
    tag = TAG
    family = "toy"

    def why_not(self, layout, shape):
        return None if layout.family == "toy" else f"the toy tag stores toys, not {layout}"

    def label(self, layout):
        return f"toy{layout.group}"

    def entries(self, layout, shape):
        buffers = layout.buffers(shape)
        return {
            "": buffers["codes"],
            ".scales": buffers["scales"],
            ".group": BufferSpec("u8", ()),
            ".shape": BufferSpec("u32", (len(shape),)),
        }

    def encode(self, qt):
        return {
            "": qt.buffers["codes"],
            ".scales": qt.buffers["scales"],
            ".group": torch.tensor(qt.layout.group, dtype=torch.uint8),
            ".shape": torch.tensor(qt.shape, dtype=torch.uint32),
        }

    def layout_of(self, specs, small):
        if set(specs) < {"", ".scales", ".group", ".shape"} or specs[".group"] != BufferSpec("u8", ()):
            raise HeaderError("toy entries are missing or wrong")
        if ".shape" not in small or ".group" not in small or small[".group"].item() == 0:
            raise HeaderError("toy facts are absurd")
        layout, shape = ToyRows(int(small[".group"].item())), tuple(int(n) for n in small[".shape"].tolist())
        for suffix, spec in self.entries(layout, shape).items():
            if specs.get(suffix) != spec:
                raise HeaderError(f"`weight{suffix}` is {specs.get(suffix)}, not {spec}")
        return layout, shape

    def decode(self, entries, layout, shape):
        return QuantizedTensor(layout, shape, {"codes": entries[""], "scales": entries[".scales"]})


QUANTIZERS = [
    Toy("toy32", 32, fallback=("f32",), width=8),
    Toy("toy64", 64, fallback=("gone", "toy32", "f32"), sensitive="toy32", width=4, priority=1),
    Toy("toy128", 128, width=4, row_block=None),
    Toy("toy_hessian", 32, needs="hessian"),
]


@hookimpl
def quantry_layouts():
    return [ToyRows]


@hookimpl
def quantry_quantizers():
    return QUANTIZERS


@hookimpl
def quantry_uqff_codecs():
    return [ToyCodec()]


def packed(n=4, k=64, seed=0):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return quantry.quantize(weight, "toy32")


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


def tensors():
    """Two toy layers and a head, a dense embedding, a bias, a router, a norm."""
    return {
        "lm_head.weight": packed(6, 64, 1),
        "model.embed_tokens.weight": noise(6, 64).bfloat16(),
        "model.layers.10.mlp.up_proj.weight": packed(4, 64, 2),
        "model.layers.2.mlp.up_proj.weight": packed(4, 64, 3),
        "model.layers.2.mlp.up_proj.bias": noise(4).half(),
        "model.layers.2.mlp.gate.weight": noise(3, 64),
        "model.norm.weight": torch.ones(64),
    }

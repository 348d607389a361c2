"""torch's own low-bit products: exact where they say so, on the packing that this machine's torch reads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import quantry
from quantry import GroupedAffine
from quantry.testing import ConversionSuite, KernelSuite, LayoutSuite, PluginSuite, random_weight
from quantry_torch.int4pack import (
    Int4PackLinear,
    Int4PackLinearDx,
    PackInt4,
    TorchInt4Pack,
    UnpackInt4,
    packing_of,
)
from quantry_torch.int8 import Int8MmLinear, Int8PackLinear

needs_vectors = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch's 4-bit packing is known for AVX2 and AVX-512; set ATEN_CPU_CAPABILITY where both exist",
)

AFFINE4 = [GroupedAffine(4, g, "in", "mid", s) for g in (32, 64, 128, 256) for s in ("f32", "bf16", "f16")]
ROWS8 = [GroupedAffine(8, 0, "in", "none", s) for s in ("f32", "bf16", "f16")]


def packed_weight(layout, shape, seed):
    """A random affine weight in torch's packing."""
    source = GroupedAffine(4, layout.group, "in", "mid", layout.scale)
    return random_weight(source, shape, seed).convert(layout)


def packings() -> list[TorchInt4Pack]:
    found = (packing_of(layout, (16, 256)) for layout in AFFINE4)
    return [layout for layout in found if layout is not None]


class TestPlugin(PluginSuite):
    name = "torch"


@needs_vectors
class TestInt4Pack(KernelSuite):
    kernel, layouts, max_cases = Int4PackLinear(), packings(), 12

    def weight(self, layout, shape, seed):
        return packed_weight(layout, shape, seed)


@needs_vectors
class TestInt4PackDx(KernelSuite):
    kernel, layouts, max_cases = Int4PackLinearDx(), packings(), 8

    def weight(self, layout, shape, seed):
        return packed_weight(layout, shape, seed)


@needs_vectors
class TestPackInt4(ConversionSuite):
    conversion, layouts, max_cases = PackInt4(), AFFINE4, 12
    shapes = ((16, 256), (64, 512), (80, 256), (144, 1024))


@needs_vectors
class TestUnpackInt4(ConversionSuite):
    conversion, layouts, max_cases = UnpackInt4(), packings(), 12
    shapes = ((16, 256), (64, 512), (80, 256), (144, 1024))

    def weight(self, layout, shape, seed):
        return packed_weight(layout, shape, seed)


@needs_vectors
class TestPacking(LayoutSuite):
    layout_cases = tuple((layout, shape) for layout in packings()[::4] for shape in ((64, 256), (176, 512)))

    def random_buffers(self, layout, shape, seed):
        return dict(packed_weight(layout, shape, seed).buffers)


class TestInt8Pack(KernelSuite):
    kernel, layouts, max_cases = Int8PackLinear(), ROWS8, 12


class TestIntMm(KernelSuite):
    kernel, layouts, max_cases = Int8MmLinear(), ROWS8, 12


@pytest.mark.parametrize("zero", ["none", "int", "float", "bias"])
def test_zeros_that_the_op_would_round_are_not_packed(zero):
    assert packing_of(GroupedAffine(4, 128, "in", zero, "bf16"), (16, 256)) is None


@pytest.mark.parametrize("capability", ["avx2", "avx512"])
@needs_vectors
def test_the_way_back_undoes_the_packing_of_each_vector_width(capability):
    code = """
import torch, sys
from quantry import GroupedAffine
from quantry.testing import random_weight
from quantry_torch.int4pack import packing_of
if torch.backends.cpu.get_cpu_capability().lower() != sys.argv[1]:
    sys.exit(3)  # torch has no such path on this machine
layout = GroupedAffine(4, 32, "in", "mid", "f16")
for rows in (16, 48, 64, 80, 96, 208):
    qt = random_weight(layout, (rows, 96), rows)
    there = qt.convert(packing_of(layout, qt.shape))
    back = there.convert(layout)
    assert all(torch.equal(back.buffers[n], b) for n, b in qt.buffers.items()), rows
"""
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", code, capability], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip(f"this machine has no {capability}")
    assert done.returncode == 0, done.stderr


@needs_vectors
def test_a_packing_of_another_vector_width_is_refused_and_still_readable():
    layout = GroupedAffine(4, 32, "in", "mid", "f32")
    here = packing_of(layout, (64, 64))
    other = TorchInt4Pack(32, "f32", 96 - here.block)
    problem = quantry.Problem("linear", other, (64, 64), 1, "f32", quantry.registry().device("cpu"))
    assert "torch on this CPU reads" in Int4PackLinear().why_not(problem)
    assert UnpackInt4().target_for(other, (64, 64)) == layout


@needs_vectors
def test_the_backward_sums_over_several_tiles(monkeypatch):
    layout = packing_of(AFFINE4[0], (16, 256))
    monkeypatch.setattr("quantry_torch.int4pack._TILE_BYTES", 1)
    rows = 2 * layout.block + 16  # two tiles of a block, one of the rows that are left
    qt = packed_weight(layout, (rows, 256), 0)
    dy = torch.randn(3, rows, generator=torch.Generator().manual_seed(0))
    dense = qt.dequantize().double()
    bound = (rows + 8) * 2**-24 * (dy.double().abs() @ dense.abs())
    dx = Int4PackLinearDx().linear_dx(dy, list(qt.buffers.values()), layout, qt.shape)
    assert ((dx - dy.double() @ dense).abs() <= bound).all()


@needs_vectors
def test_a_layer_runs_on_it_and_is_saved_as_it_came():
    qt = random_weight(GroupedAffine(4, 128, "in", "mid", "bf16"), (48, 256), 0)
    layer = quantry.QuantLinear(qt)
    with quantry.use("torch.int4pack"):
        layer.prepare(dtype=torch.bfloat16)
    assert layer.layout.family == "torch_int4pack"
    x = torch.randn(3, 256).bfloat16()
    want = x.double() @ qt.dequantize().double().T
    torch.testing.assert_close(layer(x).double(), want, rtol=2**-7, atol=2**-7)
    assert torch.equal(layer.state_dict()["codes"], qt.buffers["codes"])


def test_rounded_activations_need_fast_numerics():
    qt = random_weight(ROWS8[0], (32, 64), 0)
    rows = quantry.explain(qt, numerics="strict")["tensors"][0]["candidates"]
    assert "rounds activations to int8" in next(c["reason"] for c in rows if c["kernel"] == "torch.int_mm")
    with quantry.use("torch.int_mm"):
        assert quantry.explain(qt, numerics="fast")["tensors"][0]["chosen"] == "torch.int_mm"

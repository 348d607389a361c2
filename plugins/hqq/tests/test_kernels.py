"""Kernels on what the quantizers make: the kit, and products against float64.

All layouts and sizes are tried by the tests of quantry-kernels, where the code is.
"""

from __future__ import annotations

import pytest
import torch

import quantry
from quantry import Shape
from quantry.testing import KernelSuite
from quantry.testing.tolerance import product_bound, rounding
from quantry_hqq.encode import QUANTIZERS
from quantry_hqq.kernels import KERNELS
from quantry_hqq.native import LIBRARY

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
NAMES = [q.name for q in QUANTIZERS]


class HqqSuite(KernelSuite):
    layouts = tuple(
        quantry.registry().layout(f"affine_panel:b{bits},g64,in,float,f32") for bits in (1, 2, 3, 4, 8)
    )
    max_cases = 5


class TestInt8(HqqSuite):
    kernel = BY_NAME["hqq.affine_int8"]


class TestExact(HqqSuite):
    kernel = BY_NAME["hqq.affine_exact"]


class TestExpertsInt8(HqqSuite):
    kernel = BY_NAME["hqq.affine_experts_int8"]
    max_cases = 2


class TestExperts(HqqSuite):
    kernel = BY_NAME["hqq.affine_experts_exact"]
    max_cases = 2


class TestDx(HqqSuite):
    kernel = BY_NAME["hqq.affine_dx"]
    max_cases = 2


class TestEmbedding(HqqSuite):
    kernel = BY_NAME["hqq.affine_embedding"]
    max_cases = 2


def shapes_of(name: str) -> list[Shape]:
    return [(1, 64), (17, 192), (300, 128)] if "axis1" in name else [(64, 31), (64, 200), (320, 95)]


@pytest.mark.parametrize("target", LIBRARY.TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_products_equal_float64(name: str, target: str) -> None:
    if target not in LIBRARY.targets():
        pytest.skip(f"needs a machine with {target}")
    LIBRARY.set_target(target)
    try:
        for shape in shapes_of(name):
            packed = quantry.quantize(torch.randn(shape), name)
            dense = packed.dequantize().double()
            for rows in (1, 3, 20):
                x = torch.randn(rows, shape[1])
                y, want = quantry.matmul(x, packed), x.double() @ dense.T
                limit = product_bound(x.double(), dense, BY_NAME["hqq.affine_exact"].numerics)
                assert ((y - want).abs() <= limit + rounding(want, torch.float32)).all(), shape
    finally:
        LIBRARY.set_target(None)


@pytest.mark.parametrize("name", NAMES)
def test_modules_run_packed(name: str) -> None:
    packed = quantry.quantize(torch.randn(64, 192), name)
    linear = quantry.QuantLinear(packed)
    linear.prepare()
    assert linear.layout.family == "affine_panel"
    assert linear.storable().layout == packed.layout
    assert all(torch.equal(linear.storable().buffers[n], b) for n, b in packed.buffers.items())
    ids = torch.tensor([[0, 63], [5, 5]])
    assert torch.equal(quantry.QuantEmbedding(packed)(ids), packed.dequantize()[ids])


@pytest.mark.parametrize("name", NAMES)
def test_experts_run_packed(name: str) -> None:
    packed = quantry.quantize(torch.randn(4, 64, 64), name)
    x, ids = torch.randn(5, 1, 64), torch.randint(0, 4, (5, 2))
    y = quantry.QuantExperts(packed)(x, ids)
    want = torch.einsum("tsk,tsnk->tsn", x.double().expand(5, 2, 64), packed.dequantize().double()[ids])
    assert torch.allclose(y.double(), want, rtol=0, atol=2**-16 * want.abs().max().item())

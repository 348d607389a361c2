"""Kernels on what the quantizers make: the kit, and products against float64 on odd shapes.

All layouts and sizes are tried by the tests of quantry-kernels, where the code is.
"""

from __future__ import annotations

import pytest
import torch

import quantry
from quantry import ScaledFloat, Shape
from quantry.testing import (
    KernelSuite,
    check_experts,
    check_modules,
    check_products,
    on_target,
    random_weight,
)
from quantry_fp8.encode import QUANTIZERS
from quantry_fp8.f8q8 import F8q8, F8q8Panel
from quantry_fp8.kernels import KERNELS
from quantry_fp8.native import LIBRARY

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
NAMES = [q.name for q in QUANTIZERS]
FLOATS = [
    quantry.registry().layout(f"float_panel:{text}")
    for text in ("e4m3,0x0,f32", "e4m3,1x0,f32", "e5m2,1x0,f32")
]


class FloatSuite(KernelSuite):
    layouts = FLOATS
    max_cases = 3


class TestFloat(FloatSuite):
    kernel = BY_NAME["fp8.float_exact"]


class TestFloatExperts(FloatSuite):
    kernel = BY_NAME["fp8.float_experts_exact"]


class TestFloatDx(FloatSuite):
    kernel = BY_NAME["fp8.float_dx"]


class TestFloatEmbedding(FloatSuite):
    kernel = BY_NAME["fp8.float_embedding"]


class F8q8Suite(KernelSuite):
    layouts = (F8q8Panel(),)
    max_cases = 2


class TestF8q8Int8(F8q8Suite):
    kernel = BY_NAME["fp8.f8q8_int8"]


class TestF8q8Exact(F8q8Suite):
    kernel = BY_NAME["fp8.f8q8_exact"]


class TestF8q8ExpertsInt8(F8q8Suite):
    kernel = BY_NAME["fp8.f8q8_experts_int8"]


class TestF8q8Experts(F8q8Suite):
    kernel = BY_NAME["fp8.f8q8_experts_exact"]


class TestF8q8Dx(F8q8Suite):
    kernel = BY_NAME["fp8.f8q8_dx"]


class TestF8q8Embedding(F8q8Suite):
    kernel = BY_NAME["fp8.f8q8_embedding"]


def shapes_of(name: str) -> list[Shape]:
    return [(1, 32), (17, 96), (300, 160)] if name == "f8q8" else [(1, 7), (17, 31), (33, 200)]


@pytest.mark.parametrize("target", LIBRARY.TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_products_equal_float64(name: str, target: str) -> None:
    with on_target(LIBRARY, target):
        for shape in shapes_of(name):
            check_products(quantry.quantize(torch.randn(shape), name), BY_NAME["fp8.float_exact"].numerics)


@pytest.mark.parametrize("name", NAMES)
def test_modules_run_packed(name: str) -> None:
    check_modules(quantry.quantize(torch.randn(64, 96), name))


@pytest.mark.parametrize("name", NAMES)
def test_experts_run_packed(name: str) -> None:
    check_experts(quantry.quantize(torch.randn(4, 48, 64), name))


def test_large_f8q8_weights_may_grow_to_panels() -> None:
    """9 bits a weight instead of 8.25: more than other layouts may grow by, less than f8q8 may."""
    shape = (2048, 2048)
    grown = F8q8Panel().nbytes(shape) / F8q8().nbytes(shape)
    assert ScaledFloat.growth < grown < F8q8.growth
    linear = quantry.QuantLinear(random_weight(F8q8(), shape, 1))
    linear.prepare()
    assert linear.layout == F8q8Panel()

"""Kernels on what the quantizers make: the kit, and products against float64.

All layouts and sizes are tried by the tests of quantry-kernels, where the code is.
"""

from __future__ import annotations

import pytest
import torch

import quantry
from quantry import Shape
from quantry.testing import (
    KernelSuite,
    check_experts,
    check_modules,
    check_products,
    on_target,
)
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
    with on_target(LIBRARY, target):
        for shape in shapes_of(name):
            check_products(quantry.quantize(torch.randn(shape), name), BY_NAME["hqq.affine_exact"].numerics)


@pytest.mark.parametrize("name", NAMES)
def test_modules_run_packed(name: str) -> None:
    linear = check_modules(quantry.quantize(torch.randn(64, 192), name))
    assert linear.layout.family == "affine_panel"


@pytest.mark.parametrize("name", NAMES)
def test_experts_run_packed(name: str) -> None:
    check_experts(quantry.quantize(torch.randn(4, 64, 64), name))

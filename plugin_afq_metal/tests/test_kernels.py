"""AFQ weights run packed: the conformance kit on the panels, and products against float64 over odd shapes."""

from __future__ import annotations

import itertools

import pytest
import torch

import quantry
from quantry import GroupedAffine, Layout
from quantry.testing import ConversionSuite, KernelSuite, PluginSuite, check_pinned, random_weight
from quantry_afq_metal.panels import CONVERSIONS, KERNELS

WIDTHS = (2, 3, 4, 5, 6, 8)
SOURCES = [
    GroupedAffine(bits, group, "in", "bias", scale)
    for (bits, group), scale in zip(
        itertools.product(WIDTHS, (32, 64, 128)), itertools.cycle(GroupedAffine.SCALES), strict=False
    )
]
SHAPES = ((33, 192), (16, 256), (1, 64), (17, 1088))
OWN = tuple(f"afq.affine_{name}" for name in ("exact", "experts_exact", "embedding"))


def panels(layout: Layout) -> Layout:
    made = CONVERSIONS[0].target_for(layout, (64, 256))
    assert made is not None
    return made


for _kernel in KERNELS:
    _name = f"Test{_kernel.name.title().replace('.', '').replace('_', '')}"
    globals()[_name] = type(
        _name, (KernelSuite,), {"kernel": _kernel, "layouts": [panels(s) for s in SOURCES], "max_cases": 4}
    )


class TestPack(ConversionSuite):
    conversion, layouts = CONVERSIONS[0], SOURCES[::2]


class TestPlugin(PluginSuite):
    name = "afq"


@pytest.mark.parametrize("scale", GroupedAffine.SCALES)
@pytest.mark.parametrize("bits", WIDTHS)
def test_matmul_is_the_product_with_the_dequantized_weight(bits: int, scale: str) -> None:
    for shape, group in zip(SHAPES, (32, 64, 64, 32), strict=True):
        check_pinned(random_weight(GroupedAffine(bits, group, "in", "bias", scale), shape, 1), None, OWN)


@pytest.mark.parametrize("name", ["afq2", "afq4", "afq5", "afq8_minmax"])
def test_modules_run_packed(name: str) -> None:
    qt, stack = (quantry.quantize(torch.randn(shape), name) for shape in ((40, 128), (3, 40, 128)))
    check_pinned(qt, stack, OWN)

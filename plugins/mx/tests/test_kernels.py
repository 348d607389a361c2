"""MX weights run packed: the conformance kit on the panels, and products against float64 over odd shapes."""

from __future__ import annotations

import pytest

from quantry import Layout, ScaledFloat
from quantry.testing import ConversionSuite, KernelSuite, PluginSuite, check_pinned, random_weight
from quantry_mx.panels import CONVERSIONS, KERNELS

SOURCES = [ScaledFloat(element, (1, 32), "e8m0") for element in ("e2m1", "e4m3")]
OWN = tuple(f"mx.float_{name}" for name in ("exact", "experts_exact", "embedding"))


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
    conversion, layouts = CONVERSIONS[0], SOURCES


class TestPlugin(PluginSuite):
    name = "mx"


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("shape", [(33, 192), (16, 256), (1, 32), (17, 1056)])
def test_matmul_is_the_product_with_the_dequantized_weight(shape: tuple[int, int], source: Layout) -> None:
    check_pinned(random_weight(source, shape, 1), None, OWN)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_modules_run_packed(source: Layout) -> None:
    check_pinned(*(random_weight(source, shape, 1) for shape in ((40, 128), (3, 40, 128))), OWN)

"""NF4 and FP4 weights run packed: the conformance kit on the panels, and products against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import quantry
from quantry import GroupedCodebook, Layout, Problem, QuantizedTensor, Shape, unpack_codes
from quantry.layouts import CodebookPanel
from quantry.layouts.tables import CODEBOOKS
from quantry.testing import (
    ConversionSuite,
    KernelSuite,
    PluginSuite,
    check_experts,
    check_modules,
    check_pinned,
    random_weight,
)
from quantry_bnb.encode import QUANTIZERS
from quantry_bnb.panels import CONVERSIONS, KERNELS

SOURCES = [
    *(GroupedCodebook(table, group, "f32") for table in ("nf4", "fp4") for group in (32, 64, 128)),
    GroupedCodebook("nf4", 64, "nested"),
    GroupedCodebook("fp4", 64, "nested", flat=True),
    GroupedCodebook("nf4", 64, "f16"),
]
OWN = tuple(f"bnb.codebook_{name}" for name in ("exact", "experts_exact", "embedding"))


def panels(layout: Layout) -> Layout:
    made = CONVERSIONS[0].target_for(layout, (64, 256))
    assert made is not None
    return made


class BnbKernelSuite(KernelSuite):
    layouts = tuple(panels(source) for source in SOURCES)
    max_cases = 4

    def tolerance(self, case: Problem, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        """The int8 path also rounds the numbers of nf4, to multiples of 1/127."""
        plain = super().tolerance(case, given, dense)
        if self.kernel.numerics_for(case.layout).activations == "exact":
            return plain
        off = rounding_of_numbers(self.weight(case.layout, case.shape, 1))
        return plain + self._call.expected((given[0].abs(), *given[1:]), off)


def rounding_of_numbers(w: QuantizedTensor) -> Tensor:
    """|weight - what the int8 path takes for it|, float64."""
    assert isinstance(w.layout, CodebookPanel)
    layout, group = w.layout.source, w.layout.group
    numbers = torch.tensor(CODEBOOKS[layout.table], dtype=torch.float64)
    off = (numbers - (numbers * 127).round() / 127).abs()
    buffers = w.convert(layout).buffers
    codes = unpack_codes(buffers["codes"].view(*w.shape[:-1], -1), 4, w.shape[-1]).long()
    scales = layout.block_scales(buffers).double().abs().view(*w.shape[:-1], -1)
    return off[codes] * scales.repeat_interleave(group, -1)


for _kernel in KERNELS:
    _name = f"Test{_kernel.name.title().replace('.', '').replace('_', '')}"
    globals()[_name] = type(_name, (BnbKernelSuite,), {"kernel": _kernel})


class TestPack(ConversionSuite):
    conversion, layouts = CONVERSIONS[0], SOURCES


class TestPlugin(PluginSuite):
    name = "bnb"


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("shape", [(33, 256), (16, 512), (1, 128), (17, 1152)])
def test_matmul_is_the_product_with_the_dequantized_weight(shape: Shape, source: Layout) -> None:
    check_pinned(random_weight(source, shape, 1), None, OWN)


@pytest.mark.parametrize("name", [q.name for q in QUANTIZERS])
def test_modules_run_packed(name: str) -> None:
    qt, stack = (quantry.quantize(torch.randn(shape), name) for shape in ((40, 128), (3, 40, 128)))
    check_pinned(qt, stack, OWN)
    assert str(check_modules(qt).layout) == f"codebook_panel:{name},g64,f32"
    check_experts(stack)

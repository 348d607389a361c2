"""AFQ weights run packed: the conformance kit on the panels, and products against float64 over odd shapes."""

from __future__ import annotations

import itertools

import pytest
import torch

import quantry
from quantry import GroupedAffine, Layout, Numerics, QuantEmbedding, QuantExperts, QuantLinear
from quantry.testing import ConversionSuite, KernelSuite, PluginSuite, random_weight
from quantry.testing.tolerance import product_bound
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
EXACT = Numerics(accumulate="f32", activations="exact", deterministic=True)


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
        qt = random_weight(GroupedAffine(bits, group, "in", "bias", scale), shape, 1)
        dense = qt.dequantize().double()
        for rows in (1, 3, 17):
            x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
            with quantry.use(*OWN, numerics="exact"):
                off = (quantry.matmul(x, qt) - x.double() @ dense.T).abs()
            assert (off <= product_bound(x.double(), dense, EXACT)).all()


@pytest.mark.parametrize("name", ["afq2", "afq4", "afq5", "afq8_minmax"])
def test_modules_run_packed(name: str) -> None:
    qt, stack = (quantry.quantize(torch.randn(shape), name) for shape in ((40, 128), (3, 40, 128)))
    x, ids = torch.randn(5, 128), torch.tensor([[2], [0], [1], [1], [0]])
    dense = qt.dequantize()
    with quantry.use(*OWN, numerics="exact"):
        linear, experts, embedding = QuantLinear(qt), QuantExperts(stack), QuantEmbedding(qt)
        found, mixed, rows = linear(x), experts(x[:, None], ids), embedding(torch.tensor([3, 39]))
    assert {k.name for k in linear.kernels["linear"] if k is not None} == {"afq.affine_exact"}
    assert torch.equal(rows, dense[[3, 39]])
    bound = product_bound(x.double(), dense.double(), EXACT)
    assert ((found - x.double() @ dense.double().T).abs() <= bound).all()
    for token, expert in enumerate(ids.flatten().tolist()):
        w, row = stack.dequantize()[expert].double(), x[token : token + 1].double()
        assert ((mixed[token] - row @ w.T).abs() <= product_bound(row, w, EXACT)).all()

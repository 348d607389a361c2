"""The conformance kit on every kernel, layout and conversion of the native side."""

from __future__ import annotations

from torch import Tensor

from quantry import Layout, Shape
from quantry.testing import ConversionSuite, KernelSuite, LayoutSuite, random_weight
from quantry_gguf.kernels import (
    Dense16,
    PanelEmbedding,
    PanelExact,
    PanelExpertsExact,
    PanelExpertsInt8,
    PanelInt8,
    PanelLinearDx,
    RowsEmbedding,
)
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.panel import CONVERSIONS, PLANES, GgmlPanel, PackPanels, UnpackPanels
from quantry_gguf.types import BY_NAME


class TestPanelInt8(KernelSuite):
    kernel = PanelInt8()


class TestPanelExact(KernelSuite):
    kernel = PanelExact()


class TestPanelExpertsInt8(KernelSuite):
    kernel = PanelExpertsInt8()


class TestPanelExpertsExact(KernelSuite):
    kernel = PanelExpertsExact()


class TestPanelLinearDx(KernelSuite):
    kernel = PanelLinearDx()


class TestPanelEmbedding(KernelSuite):
    kernel = PanelEmbedding()


class TestRowsEmbedding(KernelSuite):
    kernel = RowsEmbedding()


class TestDense16(KernelSuite):
    kernel = Dense16()


class TestGgmlPanel(LayoutSuite):
    layout_cases = tuple((GgmlPanel(kind), (40, 2 * BY_NAME[kind].block)) for kind in PLANES)

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        assert isinstance(layout, GgmlPanel)
        blocks = random_weight(GgmlBlocks(layout.type), shape, seed)  # finite scales: random bytes hold NaN
        return dict(CONVERSIONS[0].convert(blocks, layout).buffers)


class TestPackPanels(ConversionSuite):
    conversion = PackPanels()


class TestUnpackPanels(ConversionSuite):
    conversion = UnpackPanels()

"""The conformance kit on every kernel, layout and conversion of the native side."""

from __future__ import annotations

import math

import torch
from kernel_weights import KINDS, random_blocks
from torch import Tensor

from quantry import Layout, QuantizedTensor, Shape
from quantry.testing import ConversionSuite, KernelSuite, LayoutSuite
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
from quantry_gguf.row_kernels import RowsExact, RowsExpertsExact, RowsExpertsInt8, RowsInt8, RowsLinearDx
from quantry_gguf.types import BY_NAME

PANELS = [GgmlPanel(kind) for kind in PLANES]
FILE_ORDER = [GgmlBlocks(kind) for kind in KINDS if kind not in PLANES]


def moderate(layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
    """Random codes with finite scales: random bytes hold NaN."""
    assert isinstance(layout, (GgmlBlocks, GgmlPanel))
    blocks = random_blocks(
        layout.type, (math.prod(shape[:-1]), shape[-1] // layout.ggml.block), 1e-3, seed
    ).reshape(*shape[:-1], -1)
    qt = QuantizedTensor(GgmlBlocks(layout.type), shape, {"blocks": torch.from_numpy(blocks)})
    return CONVERSIONS[0].convert(qt, layout) if isinstance(layout, GgmlPanel) else qt


class GgmlSuite(KernelSuite):
    """Every type: four problems of each, over all types together."""

    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        return moderate(layout, shape, seed)


class TestPanelInt8(GgmlSuite):
    kernel, layouts, max_cases = PanelInt8(), PANELS, 4 * len(PANELS)


class TestPanelExact(GgmlSuite):
    kernel, layouts, max_cases = PanelExact(), PANELS, 4 * len(PANELS)


class TestPanelExpertsInt8(GgmlSuite):
    kernel, layouts = PanelExpertsInt8(), PANELS


class TestPanelExpertsExact(GgmlSuite):
    kernel, layouts = PanelExpertsExact(), PANELS


class TestPanelLinearDx(GgmlSuite):
    kernel, layouts = PanelLinearDx(), PANELS


class TestPanelEmbedding(GgmlSuite):
    kernel, layouts = PanelEmbedding(), PANELS


class TestRowsInt8(GgmlSuite):
    kernel, layouts, max_cases = RowsInt8(), FILE_ORDER, 4 * len(FILE_ORDER)


class TestRowsExact(GgmlSuite):
    kernel, layouts, max_cases = RowsExact(), FILE_ORDER, 4 * len(FILE_ORDER)


class TestRowsExpertsInt8(GgmlSuite):
    kernel, layouts = RowsExpertsInt8(), FILE_ORDER


class TestRowsExpertsExact(GgmlSuite):
    kernel, layouts = RowsExpertsExact(), FILE_ORDER


class TestRowsLinearDx(GgmlSuite):
    kernel, layouts = RowsLinearDx(), FILE_ORDER


class TestRowsEmbedding(GgmlSuite):
    kernel, layouts = RowsEmbedding(), [GgmlBlocks(kind) for kind in KINDS]


class TestDense16(KernelSuite):
    kernel = Dense16()


class TestGgmlPanel(LayoutSuite):
    layout_cases = tuple((layout, (40, 2 * BY_NAME[layout.type].block)) for layout in PANELS)

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        return dict(moderate(layout, shape, seed).buffers)


class TestPackPanels(ConversionSuite):
    conversion, layouts = PackPanels(), [GgmlBlocks(kind) for kind in PLANES]

    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        return moderate(layout, shape, seed)


class TestUnpackPanels(ConversionSuite):
    conversion, layouts = UnpackPanels(), PANELS

    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        return moderate(layout, shape, seed)

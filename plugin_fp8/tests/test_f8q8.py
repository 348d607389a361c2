"""The f8q8 layout: its definition, slices, and panels that hold the same numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from quantry import Layout, QuantizedTensor, Shape, quantize
from quantry.testing import ConversionSuite, LayoutSuite
from quantry_fp8.f8q8 import CONVERSIONS, F8q8, F8q8Panel


def random_blocks(layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
    """Any bytes but NaN scales."""
    generator = torch.Generator().manual_seed(seed)
    spec = layout.buffers(shape)["blocks"]
    blocks = torch.randint(0, 256, spec.shape, generator=generator).to(torch.uint8)
    blocks[..., 0] = torch.where(blocks[..., 0] & 0x7F == 0x7F, 0x38, blocks[..., 0])
    return {"blocks": blocks}


class TestF8q8(LayoutSuite):
    layout_cases = ((F8q8(), (70, 64)), (F8q8(), (65, 33)), (F8q8(), (2, 40, 96)))

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        return random_blocks(layout, shape, seed)


class TestF8q8Panel(LayoutSuite):
    layout_cases = ((F8q8Panel(), (70, 64)), (F8q8Panel(), (2, 40, 96)))

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> Mapping[str, Tensor]:
        source = QuantizedTensor(F8q8(), shape, random_blocks(F8q8(), shape, seed))
        return dict(source.convert(F8q8Panel()).buffers)


class BlocksSuite(ConversionSuite):
    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        source = QuantizedTensor(F8q8(), shape, random_blocks(F8q8(), shape, seed))
        return source if layout == F8q8() else source.convert(layout)


class TestPack(BlocksSuite):
    conversion, layouts = CONVERSIONS[0], (F8q8(),)


class TestUnpack(BlocksSuite):
    conversion, layouts = CONVERSIONS[1], (F8q8Panel(),)


def test_every_scale_byte_survives_the_panels() -> None:
    blocks = torch.randint(0, 256, (256, 33)).to(torch.uint8)
    blocks[:, 0] = torch.arange(256)
    source = QuantizedTensor(F8q8(), (256, 32), {"blocks": blocks})
    back = source.convert(F8q8Panel()).convert(F8q8())
    assert torch.equal(back.buffers["blocks"], blocks)


def test_numbers_are_the_definition() -> None:
    qt = quantize(torch.randn(5, 33), "f8q8")
    blocks = qt.buffers["blocks"].numpy()
    number = blocks[:, 0].astype(np.int32)
    value = np.where(number >> 3, np.ldexp(1 + (number & 7) / 8.0, (number >> 3) - 7), (number & 7) / 512.0)
    scale = value.astype(np.float32) / np.float32(416)
    want = blocks[:, 1:].view(np.int8).astype(np.float32) * scale[:, None]
    assert torch.equal(qt.dequantize(), torch.from_numpy(want.ravel()[:165].reshape(5, 33)))


@pytest.mark.parametrize("shape", [(3, 33), (32, 40)])
def test_rows_of_partial_blocks_have_no_panels(shape: Shape) -> None:
    assert "whole blocks" in (F8q8Panel().why_not(shape) or "")
    assert CONVERSIONS[0].target_for(F8q8(), shape) is None

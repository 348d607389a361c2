"""The panel layouts: what is a bit where, against loops over single codes; slices; padding; the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quantry.errors import UsageError
from quantry.layout import Layout, Shape
from quantry.layouts import AffinePanel, CodebookPanel, FloatPanel, GroupedAffine, GroupedCodebook
from quantry.layouts.panel import PanelLayout
from quantry.layouts.planes import PLANES, deinterleave, interleave, pack_planes, unpack_planes
from quantry.tensor import QuantizedTensor
from quantry.testing import LayoutSuite, random_weight


def packed(layout: PanelLayout, shape: Shape, seed: int) -> dict[str, Tensor]:
    """Panels of a random weight of the source: random bytes of floats hold NaN."""
    source = random_weight(layout.source, shape, seed)
    return {**layout.planes(source.buffers["codes"], shape), **layout.sides(source.buffers, shape)}


class PanelSuite(LayoutSuite):
    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        assert isinstance(layout, PanelLayout)
        return packed(layout, shape, seed)


class TestAffinePanel(PanelSuite):
    layout_cases = (
        *((AffinePanel(bits, 32, "in", "int", "f16"), (40, 96)) for bits in PLANES),
        *((AffinePanel(4, 16, "in", zero, "bf16"), (33, 80)) for zero in GroupedAffine.ZEROS),
        *((AffinePanel(3, 0, "in", zero, "f32"), (17, 45)) for zero in ("none", "bias")),
        (AffinePanel(8, 0, "in", "none", "f32"), (35, 96)),
        (AffinePanel(5, 48, "in", "float", "f16"), (16, 200)),
        (AffinePanel(4, 32, "in", "int", "f16", perm=True), (40, 72)),
        (AffinePanel(4, 64, "in", "int", "f16"), (2, 24, 128)),
        *((AffinePanel(bits, 32, "out", "float", "f16"), (64, 70)) for bits in PLANES),
        (AffinePanel(4, 0, "out", "none", "f32"), (48, 33)),
        (AffinePanel(3, 16, "out", "int", "f16"), (2, 48, 40)),
    )


class TestCodebookPanel(PanelSuite):
    layout_cases = (
        *((CodebookPanel(table, 32, "f32"), (40, 96)) for table in GroupedCodebook.TABLES),
        (CodebookPanel("nf4", 64, "nested"), (600, 64)),
        (CodebookPanel("nf4", 64, "nested", flat=True), (300, 128)),
        (CodebookPanel("fp4", 64, "f16", flat=True), (33, 128)),
    )


class TestFloatPanel(PanelSuite):
    layout_cases = (
        (FloatPanel("e4m3", (0, 0), "f32"), (40, 70)),
        (FloatPanel("e5m2", (1, 0), "bf16"), (40, 96)),
        (FloatPanel("e4m3", (128, 128), "f32"), (300, 260)),
        (FloatPanel("e4m3", (0, 64), "f32"), (40, 192)),
        (FloatPanel("e4m3", (1, 32), "e8m0"), (33, 96)),
        (FloatPanel("e2m1", (1, 32), "e8m0"), (33, 97)),
        (FloatPanel("e2m1", (1, 16), "e4m3", outer=True), (40, 96)),
        (FloatPanel("e2m1", (1, 16), "e4m3", outer=True), (3, 20, 64)),
    )


@pytest.mark.parametrize("bits", PLANES)
def test_a_code_lies_where_the_drawing_says(bits: int) -> None:
    n, k = 19, 75
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (n, k), dtype=np.uint8)
    planes = {
        name: plane.numpy() for name, plane in pack_planes(torch.from_numpy(codes.copy()), bits).items()
    }
    for row in range(n):
        for column in range(k):
            found, shift = 0, 0
            for name, width in PLANES[bits].items():
                fields = 8 // width
                cell, within = divmod(column, 4 * fields)
                field, byte = divmod(within, 4)
                stored = planes[name][row // 16, 64 * cell + 4 * (row % 16) + byte]
                found |= (int(stored) >> width * field & (1 << width) - 1) << shift
                shift += width
            assert found == codes[row, column], (row, column)


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (2, 3, 70), (0, 5), (4, 0), (0, 4, 4)])
def test_planes_unpack_to_the_codes(bits: int, shape: Shape) -> None:
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
    assert torch.equal(unpack_planes(pack_planes(codes, bits), bits, *shape[-2:]), codes)


def test_padding_is_zero() -> None:
    layout = AffinePanel(5, 32, "in", "int", "f16")
    source = QuantizedTensor(
        layout.source,
        (3, 40),
        {
            "codes": torch.full((3, 25), 255, dtype=torch.uint8),
            "scales": torch.ones(3, 2, dtype=torch.float16),
            "zeros": torch.ones(3, 2, dtype=torch.uint8),
        },
    )
    planes = layout.planes(source.buffers["codes"], source.shape)
    low = planes["codes"].view(8, 16, 4)  # cells of 8 columns
    assert not low[:, 3:].any()
    assert not low[5:].any()
    sides = layout.sides(source.buffers, source.shape)
    assert not sides["scales"][..., 3:].any()
    assert not sides["zeros"][..., 3:].any()


def test_rows_of_a_group_across_rows_lie_together() -> None:
    """Stored row j of a matrix of 3 groups of 16 rows is row j // 16 + 3 (j % 16)."""
    layout = AffinePanel(8, 16, "out", "mid", "f32")
    shape = (48, 5)
    codes = np.arange(48, dtype=np.uint8)[:, None].repeat(5, 1)  # each code says its row
    by_column = codes.reshape(16, 15).T.copy()  # W.view(group, C), column by column
    stored = layout.unpacked(torch.from_numpy(by_column), shape)
    assert stored[:, 0].tolist() == [j // 16 + 3 * (j % 16) for j in range(48)]
    assert torch.equal(layout.repacked(stored, shape), torch.from_numpy(by_column))


def test_numbers_of_rows_are_interleaved() -> None:
    values = torch.arange(20 * 3).view(20, 3).float()
    woven = interleave(values)
    assert woven.shape == (2, 3, 16)
    assert woven[1, 2, 3] == values[19, 2]
    assert torch.equal(deinterleave(woven, 20), values)


def test_refusals_say_what_does_not_fit() -> None:
    assert AffinePanel(4, 8, "out", "mid", "f16").why_not((16, 4)) == (
        "a group of 8 rows does not fill panels of 16"
    )
    assert AffinePanel(4, 64, "out", "mid", "f16").why_not((96, 64)) == (
        "96 rows are not a multiple of the group, so a group mixes columns"
    )
    assert CodebookPanel("nf4", 64, "f32", flat=True).why_not((4, 96)) == (
        "rows of 96 are not whole blocks of 64: blocks cross rows"
    )
    assert FloatPanel("e4m3", (8, 8), "f32").why_not((16, 16)) == (
        "blocks of 8 rows are not whole panels of 16"
    )
    with pytest.raises(UsageError, match="codes have 1 to 8 bits"):
        AffinePanel(9, 8, "in", "mid", "f16")
    assert not AffinePanel.storable

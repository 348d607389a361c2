"""Codebook weights against values quoted from bitsandbytes/functional.py and ggml-common.h, and loops of our
own."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch

from quantry.errors import ShapeError
from quantry.layouts import GroupedCodebook
from quantry.layouts.codebook import CodebookTable
from quantry.layouts.tables import dynamic_map
from quantry.tensor import QuantizedTensor
from quantry.testing.layouts import LayoutSuite

# bitsandbytes/functional.py, read column by column
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# "magnitudes are {0, 1/16, 8, 12, 4, 6, 2, 3}/12", sign bit 8
FP4 = [sign * v / 12 for sign in (1, -1) for v in (0, 1 / 16, 8, 12, 4, 6, 2, 3)]
# ggml-common.h
IQ4_NL = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
# OCP MX 1.0
E2M1 = [sign * v for sign in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
QUOTED = {"nf4": NF4, "fp4": FP4, "iq4_nl": IQ4_NL, "e2m1": E2M1}


class TestCodebook(LayoutSuite):
    layout_cases = (
        *((GroupedCodebook(table, 32, "f16"), (6, 96)) for table in ("nf4", "fp4", "iq4_nl", "e2m1")),
        (GroupedCodebook("nf4", 64, "f32"), (3, 4, 128)),
        (GroupedCodebook("nf4", 2, "nested"), (700, 4)),  # three nested blocks, the last short
        (GroupedCodebook("fp4", 64, "nested"), (2, 5, 64)),
        (
            GroupedCodebook("nf4", 32, "f32", flat=True),
            (100, 13),
        ),  # blocks cross rows, an odd count at the end
        (GroupedCodebook("nf4", 4, "f16", flat=True), (11, 3)),
        (GroupedCodebook("nf4", 2, "nested", flat=True), (1100, 3)),
        (GroupedCodebook("nf4", 8, "f32", flat=True), (2, 24, 5)),
    )


@pytest.mark.parametrize("table", GroupedCodebook.TABLES)
def test_tables_hold_the_quoted_values(table: CodebookTable) -> None:
    codes = torch.arange(0, 256, 17, dtype=torch.uint8)  # byte 0x11*c: code c twice
    buffers = {"codes": codes.view(16, 1), "scales": torch.ones(16, 1)}
    dense = QuantizedTensor(GroupedCodebook(table, 2, "f32"), (16, 2), buffers).dequantize()
    expected = torch.tensor(QUOTED[table], dtype=torch.float32)
    torch.testing.assert_close(dense[:, 0], expected, rtol=1e-7, atol=0)
    assert torch.equal(dense[:, 0], dense[:, 1])


@pytest.mark.parametrize(("table", "negative"), [("fp4", False), ("e2m1", True)])
def test_the_sign_of_code_8(table: CodebookTable, negative: bool) -> None:
    """bitsandbytes' table holds +0 there, OCP's E2M1 holds -0."""
    buffers = {"codes": torch.full((1, 1), 0x88, dtype=torch.uint8), "scales": torch.ones(1, 1)}
    dense = QuantizedTensor(GroupedCodebook(table, 2, "f32"), (1, 2), buffers).dequantize()
    assert dense.eq(0).all()
    assert dense.signbit().tolist() == [[negative] * 2]


def test_the_low_nibble_is_the_even_column() -> None:
    buffers = {"codes": torch.tensor([[0x10, 0x32]], dtype=torch.uint8), "scales": torch.ones(1, 1)}
    dense = QuantizedTensor(GroupedCodebook("iq4_nl", 4, "f32"), (1, 4), buffers).dequantize()
    assert dense.tolist() == [[-127, -104, -83, -65]]


def random_nested(layout: GroupedCodebook, shape: tuple[int, int]) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(7)
    buffers = {}
    for name, spec in layout.buffers(shape).items():
        if spec.dtype == "u8":
            buffers[name] = torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
        else:
            buffers[name] = torch.rand(spec.shape, generator=generator) + 0.01
    return QuantizedTensor(layout, shape, buffers)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (GroupedCodebook("nf4", 32, "nested"), (300, 64)),
        (GroupedCodebook("nf4", 32, "nested", flat=True), (301, 51)),
        (GroupedCodebook("nf4", 64, "f32", flat=True), (7, 9)),
        (GroupedCodebook("nf4", 32, "f32"), (5, 64)),
    ],
)
def test_dequantize_is_the_formula_over_the_flattened_matrix(
    layout: GroupedCodebook, shape: tuple[int, int]
) -> None:
    qt = random_nested(layout, shape)
    f32 = np.float32
    b = {name: buffer.flatten().tolist() for name, buffer in qt.buffers.items()}
    table, fine = np.array(NF4, f32), np.array(dynamic_map(), f32)
    expected = []
    for f in range(shape[0] * shape[1]):
        code = (b["codes"][f // 2] >> (4 * (f % 2))) & 15
        block = f // layout.group
        scale = f32(b["scales"][block])
        if layout.scale == "nested":
            scale = f32(fine[b["scales"][block]] * f32(b["nested_scales"][block // 256]))
            scale = f32(scale + f32(b["nested_offset"][0]))
        expected.append(table[code] * scale)
    np.testing.assert_array_equal(qt.dequantize().numpy(), np.array(expected, f32).reshape(shape))


def test_flat_and_row_forms_share_their_bytes() -> None:
    rows = random_nested(GroupedCodebook("nf4", 32, "nested"), (40, 96))
    flat_layout = GroupedCodebook("nf4", 32, "nested", flat=True)
    specs = flat_layout.buffers((40, 96))
    flat = QuantizedTensor(
        flat_layout, (40, 96), {n: b.reshape(specs[n].shape) for n, b in rows.buffers.items()}
    )
    assert torch.equal(flat.dequantize(), rows.dequantize())


def test_the_dynamic_map_follows_its_formula() -> None:
    """Float64 arithmetic from bitsandbytes/functional.py; the constant is that of float32, an ulp away at
    most."""
    exact = {0.0, 1.0}
    for i in range(7):
        points = np.linspace(0.1, 1, 2**i + 1)
        for mean in (points[:-1] + points[1:]) / 2 * 10.0 ** (i - 6):
            exact |= {mean, -mean}
    found = dynamic_map()
    assert len(found) == 256
    np.testing.assert_allclose(found, sorted(exact), rtol=2.0**-22, atol=0)
    assert found[-2] == pytest.approx(0.99297, abs=1e-5)
    assert (found[0], found[-1]) == (-found[-2], 1.0)


def test_the_dynamic_map_is_that_of_bitsandbytes() -> None:
    """Hash of create_dynamic_map().numpy().tobytes(), bitsandbytes 0.50.2, torch 2.13, x86-64 with AVX2."""
    raw = struct.pack("<256f", *dynamic_map())
    assert hashlib.sha256(raw).hexdigest().startswith("e732639a65f497b4")


def test_double_quantization_costs_an_eighth_of_a_bit() -> None:
    shape = (4096, 4096)
    plain, nested = (GroupedCodebook("nf4", 64, s).nbytes(shape) * 8 / 4096**2 for s in ("f32", "nested"))
    assert plain == 4.5
    assert nested == pytest.approx(4.127, abs=1e-3)


def test_rows_that_are_not_whole_blocks_are_refused_unless_flat() -> None:
    reason = GroupedCodebook("nf4", 64, "f32").why_not((8, 96))
    assert reason == "rows of 96 are not whole blocks of 64; the flat form holds them"
    assert GroupedCodebook("nf4", 64, "f32", flat=True).why_not((8, 96)) is None


@pytest.mark.parametrize(
    ("layout", "rows", "columns"),
    [
        (GroupedCodebook("nf4", 64, "f32"), 1, 64),
        (GroupedCodebook("nf4", 64, "nested"), 256, None),
        (GroupedCodebook("nf4", 64, "f32", flat=True), 64, None),
        (GroupedCodebook("nf4", 64, "nested", flat=True), 64 * 256, None),
    ],
)
def test_steps_never_cut_a_block(layout: GroupedCodebook, rows: int, columns: int | None) -> None:
    assert (layout.step(-2), layout.step(-1)) == (rows, columns)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (GroupedCodebook("nf4", 64, "nested"), "256 neighbouring scales share one scale"),
        (GroupedCodebook("nf4", 64, "f32", flat=True), "blocks cross rows"),
    ],
)
def test_columns_that_cannot_be_sliced_say_why(layout: GroupedCodebook, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        layout.narrow({}, (64, 64), -1, 0, 64)

"""Small floats against torch's float8 casts and against blocks multiplied one weight at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantry.layout import Layout, Shape
from quantry.layouts import ScaledFloat
from quantry.layouts.bitpack import pack, unpack
from quantry.layouts.scaled_float import Element, FloatScale
from quantry.tensor import QuantizedTensor
from quantry.testing.layouts import LayoutSuite

TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e8m0": torch.float8_e8m0fnu}
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]  # OCP MX 1.0

NVFP4 = ScaledFloat("e2m1", (1, 16), "e4m3", outer=True)
ALL_CODES = torch.arange(256, dtype=torch.uint8)


def finite_buffers(layout: ScaledFloat, shape: Shape, seed: int) -> dict[str, torch.Tensor]:
    """Codes without NaN and infinity, exponents near 127."""
    generator = torch.Generator().manual_seed(seed)
    buffers = {}
    for name, spec in layout.buffers(shape).items():
        if spec.dtype == "u8":
            b = torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
            if name == "scales" and layout.scale == "e8m0":
                b = 100 + b % 50
            elif name == "scales" or layout.element != "e2m1":
                b &= 0xBB  # clears an exponent bit of e4m3 and of e5m2
            buffers[name] = b
        else:
            values = torch.rand(spec.shape, generator=generator) + 0.1
            buffers[name] = values.to(torch.bfloat16 if spec.dtype == "bf16" else torch.float32)
    return buffers


class TestScaledFloat(LayoutSuite):
    layout_cases = (
        *((ScaledFloat("e4m3", (4, 8), scale), (10, 36)) for scale in ("f32", "bf16", "e8m0", "e4m3")),
        (ScaledFloat("e4m3", (0, 0), "f32"), (5, 7)),  # per tensor
        (ScaledFloat("e4m3", (1, 0), "bf16"), (5, 7)),  # per channel
        (ScaledFloat("e5m2", (128, 128), "f32"), (130, 129)),
        (ScaledFloat("e4m3", (1, 32), "e8m0"), (3, 96)),  # MXFP8
        (ScaledFloat("e2m1", (1, 32), "e8m0"), (2, 4, 64)),  # MXFP4 experts
        (NVFP4, (6, 48)),
        (NVFP4, (2, 6, 48)),
        (ScaledFloat("e2m1", (2, 3), "f32"), (5, 11)),  # odd columns, odd blocks
        (ScaledFloat("e2m1", (0, 0), "f32", outer=True), (3, 9)),
    )

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, torch.Tensor]:
        assert isinstance(layout, ScaledFloat)
        return finite_buffers(layout, shape, seed)


@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
def test_all_codes_decode_as_torch_casts_them(element: Element) -> None:
    layout = ScaledFloat(element, (0, 0), "f32")
    buffers = {"codes": ALL_CODES.view(16, 16), "scales": torch.ones(1, 1)}
    dense = QuantizedTensor(layout, (16, 16), buffers).dequantize().flatten()
    expected = ALL_CODES.view(TORCH[element]).float()
    assert torch.equal(dense.isnan(), expected.isnan())
    assert torch.equal(dense.nan_to_num(9.0), expected.nan_to_num(9.0))
    assert torch.equal(dense.signbit(), expected.signbit())


@pytest.mark.parametrize("scale", ["e4m3", "e8m0"])
def test_all_scale_codes_decode_as_torch_casts_them(scale: FloatScale) -> None:
    layout = ScaledFloat("e4m3", (1, 1), scale)
    buffers = {
        "codes": torch.full((1, 256), 0x38, dtype=torch.uint8),
        "scales": ALL_CODES.view(1, 256),
    }  # 1.0
    dense = QuantizedTensor(layout, (1, 256), buffers).dequantize().flatten()
    assert torch.equal(dense.nan_to_num(9.0), ALL_CODES.view(TORCH[scale]).float().nan_to_num(9.0))


def test_e8m0_is_a_bare_exponent() -> None:
    layout = ScaledFloat("e4m3", (1, 1), "e8m0")
    codes = torch.full((1, 4), 0x38, dtype=torch.uint8)
    buffers = {"codes": codes, "scales": torch.tensor([[0, 127, 254, 255]], dtype=torch.uint8)}
    dense = QuantizedTensor(layout, (1, 4), buffers).dequantize()[0].tolist()
    assert dense[:3] == [2.0**-127, 1.0, 2.0**127]
    assert math.isnan(dense[3])


def test_e2m1_holds_the_even_column_in_the_low_nibble() -> None:
    codes = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]], dtype=torch.uint8)
    qt = QuantizedTensor(
        ScaledFloat("e2m1", (1, 0), "f32"), (1, 16), {"codes": codes, "scales": torch.ones(1, 1)}
    )
    assert qt.dequantize().tolist() == [E2M1]


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("scale", ScaledFloat.SCALES)
@pytest.mark.parametrize("element", ScaledFloat.ELEMENTS)
@pytest.mark.parametrize(
    ("block", "shape"),
    [
        ((0, 0), (3, 5)),
        ((1, 0), (3, 5)),
        ((0, 1), (3, 5)),
        ((1, 4), (3, 12)),
        ((4, 6), (9, 13)),
        ((64, 64), (9, 13)),
    ],
)
def test_dequantize_is_the_formula_bit_for_bit(element, block, shape, scale, outer) -> None:  # type: ignore[no-untyped-def]
    layout = ScaledFloat(element, block, scale, outer)
    buffers = finite_buffers(layout, shape, seed=4)
    n, k = shape
    if element == "e2m1":
        numbers = np.array(E2M1, np.float32)[unpack(buffers["codes"], 4, k).numpy()]
    else:
        numbers = buffers["codes"].view(TORCH[element]).float().numpy()
    stored = buffers["scales"]
    scales = (stored.view(TORCH[scale]) if scale in TORCH else stored).float().numpy()
    second = np.float32(buffers["outer"]) if outer else np.float32(1)
    rows, columns = block[0] or n, block[1] or k
    expected = np.empty(shape, np.float32)
    for i in range(n):
        for j in range(k):
            expected[i, j] = numbers[i, j] * np.float32(scales[i // rows, j // columns] * second)
    dense = QuantizedTensor(layout, shape, buffers).dequantize().numpy()
    np.testing.assert_array_equal(dense, expected)


def test_a_nan_code_gives_one_nan() -> None:
    codes = torch.zeros(3, 4, dtype=torch.uint8)
    codes[1, 2] = 0x7F
    qt = QuantizedTensor(
        ScaledFloat("e4m3", (2, 2), "f32"), (3, 4), {"codes": codes, "scales": torch.ones(2, 2)}
    )
    assert qt.dequantize().isnan().nonzero().tolist() == [[1, 2]]


def test_a_nan_scale_gives_nan_in_its_block_only() -> None:
    buffers = {
        "codes": torch.zeros(3, 4, dtype=torch.uint8),
        "scales": torch.full((2, 2), 127, dtype=torch.uint8),
    }
    buffers["scales"][1, 0] = 0xFF
    qt = QuantizedTensor(ScaledFloat("e4m3", (2, 2), "e8m0"), (3, 4), buffers)
    assert qt.dequantize().isnan().nonzero().tolist() == [[2, 0], [2, 1]]


def test_the_scale_grid_of_a_ragged_deepseek_weight() -> None:
    specs = ScaledFloat("e4m3", (128, 128), "f32").buffers((130, 129))
    assert specs["codes"].shape == (130, 129)
    assert specs["scales"].shape == (2, 2)


def test_bits_per_weight_of_known_formats() -> None:
    shape = (4096, 4096)
    sizes = {
        "float:e2m1,1x32,e8m0": 4.25,
        "float:e2m1,1x16,e4m3": 4.5,
        "float:e4m3,1x32,e8m0": 8.25,
    }
    for layout in (
        ScaledFloat("e2m1", (1, 32), "e8m0"),
        ScaledFloat("e2m1", (1, 16), "e4m3"),
        ScaledFloat("e4m3", (1, 32), "e8m0"),
    ):
        assert layout.nbytes(shape) * 8 / 4096**2 == sizes[str(layout)]


@pytest.mark.parametrize(
    ("layout", "rows", "columns"),
    [
        (ScaledFloat("e4m3", (0, 0), "f32"), 1, 1),
        (ScaledFloat("e4m3", (128, 64), "f32"), 128, 64),
        (ScaledFloat("e2m1", (0, 0), "f32"), 1, 2),
        (ScaledFloat("e2m1", (1, 15), "f32"), 1, 30),
    ],
)
def test_steps_are_blocks_and_whole_bytes(layout: ScaledFloat, rows: int, columns: int) -> None:
    assert (layout.step(-2), layout.step(-1)) == (rows, columns)


def test_odd_columns_of_e2m1_end_in_half_a_byte() -> None:
    codes = torch.randint(0, 16, (2, 7), dtype=torch.uint8)
    qt = QuantizedTensor(
        ScaledFloat("e2m1", (0, 0), "f32"), (2, 7), {"codes": pack(codes, 4), "scales": torch.ones(1, 1)}
    )
    assert qt.buffers["codes"].shape == (2, 4)
    assert torch.equal(qt.dequantize(), torch.tensor(E2M1, dtype=torch.float32)[codes.long()])

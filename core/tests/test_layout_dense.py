"""Plain tensors against torch's own casts and slices."""

from __future__ import annotations

import pytest
import torch

from quantry.dtypes import torch_dtype
from quantry.layouts import Dense
from quantry.tensor import QuantizedTensor
from quantry.testing.layouts import LayoutSuite


class TestDense(LayoutSuite):
    layout_cases = (
        *((Dense(dtype), (5, 7)) for dtype in Dense.DTYPES),
        (Dense("f32"), ()),
        (Dense("bf16"), (9,)),
        (Dense("f16"), (2, 3, 4)),
    )


@pytest.mark.parametrize("dtype", Dense.DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (6,), (3, 5), (2, 3, 5), (1, 2, 3, 4)])
def test_the_weight_is_the_buffer(dtype: str, shape: tuple[int, ...]) -> None:
    weight = (torch.rand(shape) * 100).to(torch_dtype(dtype))
    qt = QuantizedTensor(Dense(dtype), shape, {"weight": weight})
    assert torch.equal(qt.dequantize(), weight.float())
    assert qt.nbytes == weight.numel() * weight.element_size()


def test_dequantize_copies_even_float32() -> None:
    weight = torch.ones(2, 2)
    QuantizedTensor(Dense("f32"), (2, 2), {"weight": weight}).dequantize().zero_()
    assert weight.eq(1).all()


def test_large_integers_and_float64_round_to_float32() -> None:
    big = torch.tensor([2**24 + 1, -(2**24) - 3], dtype=torch.int64)
    assert QuantizedTensor(Dense("i64"), (2,), {"weight": big}).dequantize().tolist() == [
        2.0**24,
        -(2.0**24) - 4,
    ]


def test_a_norm_is_sliced() -> None:
    qt = QuantizedTensor(Dense("f32"), (6,), {"weight": torch.arange(6.0)})
    assert qt.narrow(0, 2, 3).dequantize().tolist() == [2, 3, 4]


def test_a_negative_size_is_refused() -> None:
    assert Dense("f32").why_not((3, -1)) == "size -1 is negative"

"""QuantizedTensor: a checked, immutable value."""

from __future__ import annotations

import pickle

import pytest
import torch

from quantry import Dense, QuantizedTensor, ShapeError, UsageError


def dense(shape=(6, 4)):
    return QuantizedTensor(Dense("f32"), shape, {"weight": torch.arange(24.0).reshape(shape)})


@pytest.mark.parametrize(
    ("buffers", "sentence"),
    [
        ({}, "has the buffers"),
        ({"weight": torch.zeros(6, 4), "more": torch.zeros(1)}, "has the buffers"),
        ({"weight": torch.zeros(6, 5)}, r"must be f32 \[6, 4\], got f32 \[6, 5\]"),
        ({"weight": torch.zeros(6, 4, dtype=torch.float16)}, "got f16"),
        ({"weight": torch.zeros(4, 6).T}, "not contiguous"),
    ],
)
def test_buffers_must_be_what_the_layout_says(buffers, sentence):
    with pytest.raises(ShapeError, match=sentence):
        QuantizedTensor(Dense("f32"), (6, 4), buffers)


def test_is_immutable():
    with pytest.raises(AttributeError, match="immutable"):
        dense().shape = (1,)


def test_sizes():
    qt = dense()
    assert (qt.numel, qt.nbytes, qt.bits_per_weight) == (24, 96, 32.0)


def test_pickle_keeps_the_value():
    qt = pickle.loads(pickle.dumps(dense()))  # noqa: S301
    assert torch.equal(qt.dequantize(), dense().dequantize())


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_narrow_is_the_dense_slice(dim):
    qt = dense()
    assert torch.equal(qt.narrow(dim, 1, 2).dequantize(), qt.dequantize().narrow(dim, 1, 2))


@pytest.mark.parametrize(("dim", "start", "length"), [(0, 5, 2), (0, -1, 1), (1, 0, 5)])
def test_narrow_out_of_range_is_refused(dim, start, length):
    with pytest.raises(UsageError):
        dense().narrow(dim, start, length)

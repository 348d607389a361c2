"""Quantizers write MLX's bytes, by `mlx` itself, and mistral.rs', by what its wheel wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
import torch
from afq_weights import edge_rows, in_dtype, minmax_reference, worked_example
from hypothesis import given, settings, strategies as st
from torch import Tensor

from quantry import (
    GroupedAffine,
    QuantizedTensor,
    Quantizer,
    ShapeError,
    ValueDomainError,
    dtype_name,
    unpack_codes,
)
from quantry.testing import QuantizerSuite, on_target, on_threads
from quantry_afq_metal.encode import QUANTIZERS, MinMaxQuantizer
from quantry_afq_metal.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
MLX = [q for q in QUANTIZERS if not isinstance(q, MinMaxQuantizer)]
MINMAX = [q for q in QUANTIZERS if isinstance(q, MinMaxQuantizer)]
DTYPES = {torch.float32: mx.float32, torch.float16: mx.float16, torch.bfloat16: mx.bfloat16}
# name → SHA-256 of the codes (first 16 digits), first scale and bias: mistralrs 0.9.5 on worked_example()
WORKED = {
    "afq2_minmax": ("650fcab0911c9306", "0000003f", "000040bf"),
    "afq3_minmax": ("c553c850c63b8546", "b76d5b3e", "000040bf"),
    "afq4_minmax": ("012a82c8c56fb2c5", "cdcccc3d", "000040bf"),
    "afq6_minmax": ("8ff7bf0c07ef8642", "310cc33c", "000040bf"),
    "afq8_minmax": ("97aacec11a05a33c", "c1c0c03b", "000040bf"),
}


def by_name(q: Quantizer) -> str:
    return q.name


def encode(q: Quantizer, weight: Tensor) -> QuantizedTensor:
    return q.quantize(weight, q.layout_for(tuple(weight.shape), dtype_name(weight.dtype)))


def same(one: QuantizedTensor, two: QuantizedTensor) -> bool:
    return all(torch.equal(buffer, two.buffers[name]) for name, buffer in one.buffers.items())


def by_mlx(weight: Tensor, bits: int) -> dict[str, Tensor]:
    mx.set_default_device(mx.cpu)
    source = mx.array(weight.float().numpy()).astype(DTYPES[weight.dtype])
    words, scales, biases = mx.quantize(source, 64, bits)
    codes = torch.from_numpy(np.array(words).view(np.uint8))
    rest = (torch.from_numpy(np.array(v.astype(mx.float32))).to(weight.dtype) for v in (scales, biases))
    return dict(zip(("codes", "scales", "biases"), (codes, *rest), strict=True))


def check_mlx(q: Quantizer, weight: Tensor) -> None:
    found = encode(q, weight)
    for name, buffer in by_mlx(weight, found.layout.bits).items():
        assert torch.equal(found.buffers[name], buffer), name


@pytest.fixture(params=LIBRARY.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_target(LIBRARY, request.param):
        yield request.param


for _q in QUANTIZERS:
    _name, _facts = f"Test{_q.name.title()}", {"quantizer": _q, "shapes": ((17, 256), (2, 1, 64))}
    globals()[_name] = type(_name, (QuantizerSuite,), _facts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q", MLX, ids=by_name)
def test_bytes_equal_mlx(target: str, q: Quantizer, dtype: torch.dtype) -> None:
    check_mlx(q, in_dtype(edge_rows(), dtype))


@given(seed=st.integers(0, 2**32 - 1), q=st.sampled_from(MLX), dtype=st.sampled_from(list(DTYPES)))
@settings(max_examples=60, deadline=None)
def test_any_finite_bits_equal_mlx(seed: int, q: Quantizer, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (3, 192), np.uint32)
    # mostly one common exponent: fully random bits leave one significant value a group
    narrow = (bits & 0x807FFFFF) | np.uint32(rng.integers(1, 250)) << np.uint32(23)
    values = np.where(rng.random(bits.shape) < rng.choice([0, 0.1, 1]), bits, narrow).view(np.float32)
    values = np.where(np.abs(values) < 2.0**126, values, np.float32(0))
    check_mlx(q, in_dtype(torch.from_numpy(values), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q", MINMAX, ids=by_name)
def test_minmax_is_the_rule_of_mistralrs(target: str, q: Quantizer, dtype: torch.dtype) -> None:
    weight = in_dtype(edge_rows(seed=1), dtype)
    found = encode(q, weight)
    bits = found.layout.bits
    codes, scales, biases = minmax_reference(weight, bits)
    assert torch.equal(unpack_codes(found.buffers["codes"], bits, weight.shape[1]), torch.from_numpy(codes))
    assert torch.equal(found.buffers["scales"], scales)
    assert torch.equal(found.buffers["biases"].view(torch.uint8), biases.view(torch.uint8))


@pytest.mark.parametrize("name", WORKED)
def test_worked_examples_of_mistralrs(name: str) -> None:
    found = encode(BY_NAME[name], worked_example())
    sha, *first = WORKED[name]
    assert hashlib.sha256(found.buffers["codes"].numpy().tobytes()).hexdigest()[:16] == sha
    assert [found.buffers[n][0, :1].numpy().tobytes().hex() for n in ("scales", "biases")] == first


def test_mlx_reads_the_bytes() -> None:
    mx.set_default_device(mx.cpu)
    for q in QUANTIZERS:
        found = encode(q, edge_rows())
        words, scales, biases = (
            mx.array(found.buffers[n].numpy().view(kind))
            for n, kind in (("codes", np.uint32), ("scales", np.float32), ("biases", np.float32))
        )
        theirs = mx.dequantize(words, scales, biases, 64, found.layout.bits)
        assert torch.equal(torch.from_numpy(np.array(theirs)), found.dequantize()), q.name


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_thread_count_does_not_matter(q: Quantizer) -> None:
    weight = torch.cat([edge_rows(512), torch.randn(300, 512)])
    found = []
    for threads in (1, 2, 7):
        with on_threads(threads):
            found.append(encode(q, weight))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (2, 0, 128), (0, 3, 64)])
def test_empty_weights(shape: tuple[int, ...]) -> None:
    for q in QUANTIZERS:
        assert encode(q, torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("q", [BY_NAME["afq4"], BY_NAME["afq4_minmax"]], ids=by_name)
def test_a_range_beyond_float32_is_named(q: Quantizer) -> None:
    weight = torch.zeros(3000, 128)
    weight[2000, 70], weight[2000, 100], weight[2001, 0] = 2e38, -3e38, 3e38
    with pytest.raises(ValueDomainError, match=r"row 2000, column 100"):
        encode(q, weight)
    weight[2000] = 3e38  # far from zero, but of no range
    assert torch.equal(encode(q, weight).dequantize()[2000], weight[2000])


@pytest.mark.parametrize("columns", [32, 63, 65, 96])
def test_columns_that_are_no_whole_groups_are_refused(columns: int) -> None:
    for q in QUANTIZERS:
        assert f"multiple of 64, got {columns}" in (q.why_not((4, columns), "f32") or "")
        with pytest.raises(ShapeError, match="multiple of 64"):
            encode(q, torch.zeros(4, columns))


def test_names_widths_and_promotion() -> None:
    assert [q.name for q in MLX] == [f"afq{b}" for b in (2, 3, 4, 5, 6, 8)]
    assert [q.width for q in MLX] == [2, 3, 4, 5, 6, 8]
    assert all(q.width is None for q in MINMAX)
    assert [q.sensitive for q in MLX] == ["afq6", "afq6", "afq6", "afq8", "afq8", None]
    assert [q.sensitive for q in MINMAX] == ["afq6_minmax"] * 3 + ["afq8_minmax", None]
    for dtype in GroupedAffine.SCALES:
        assert BY_NAME["afq3"].layout_for((4, 64), dtype) == GroupedAffine(3, 64, "in", "bias", dtype)

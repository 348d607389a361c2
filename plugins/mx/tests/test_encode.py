"""MXFP4 bytes are those of mistral.rs, MXFP8 follows the OCP rule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from mx_weights import edge_rows, in_dtype, mxfp4_reference, mxfp8_reference
from torch import Tensor

from quantry import QuantizedTensor, Quantizer, ShapeError, ValueDomainError, dtype_name
from quantry.testing import QuantizerSuite, on_target, on_threads
from quantry_mx.encode import QUANTIZERS
from quantry_mx.native import LIBRARY

MXFP4, MXFP8 = QUANTIZERS
REFERENCES = {"mxfp4": mxfp4_reference, "mxfp8": mxfp8_reference}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def by_name(q: Quantizer) -> str:
    return q.name


def encode(q: Quantizer, weight: Tensor) -> QuantizedTensor:
    return q.quantize(weight, q.layout_for(tuple(weight.shape), dtype_name(weight.dtype)))


def check(q: Quantizer, weight: Tensor) -> None:
    found = encode(q, weight)
    for name, expected in zip(("scales", "codes"), reversed(REFERENCES[q.name](weight)), strict=True):
        wrong = (found.buffers[name] != expected).any(1).nonzero().flatten().tolist()
        assert not wrong, f"{name} of rows {wrong}"


@pytest.fixture(params=LIBRARY.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_target(LIBRARY, request.param):
        yield request.param


class TestMxfp4(QuantizerSuite):
    quantizer = MXFP4


class TestMxfp8(QuantizerSuite):
    quantizer = MXFP8


def test_worked_example_of_mistralrs() -> None:
    """What mistralrs 0.9.5 wrote for this weight."""
    r, c = torch.arange(256)[:, None], torch.arange(256)
    found = encode(MXFP4, ((31 * r + 17 * c) % 97 - 48) / 64)
    codes = found.buffers["codes"].numpy().tobytes()
    assert codes[:16].hex() == "ef1c65df2a75de3976ce40f6be52f7ad"
    assert found.buffers["scales"][0, 0].item() == 0x7C
    assert hashlib.sha256(codes).hexdigest()[:16] == "1ba384f74cc03ffd"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_bytes_are_those_of_the_rule(target: str, q: Quantizer, dtype: torch.dtype) -> None:
    check(q, in_dtype(edge_rows(), dtype))


@given(seed=st.integers(0, 2**32 - 1), q=st.sampled_from(QUANTIZERS), dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_any_finite_bits_follow_the_rule(seed: int, q: Quantizer, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (3, 96), np.uint32)
    narrow = (bits & 0x807FFFFF) | np.uint32(rng.integers(1, 254)) << np.uint32(23)
    values = np.where(rng.random(bits.shape) < rng.choice([0, 0.1, 1]), bits, narrow).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    check(q, in_dtype(torch.from_numpy(values), dtype))


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_every_number_of_the_format_is_kept(q: Quantizer) -> None:
    numbers = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])
    if q is MXFP8:
        numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        numbers = numbers[~numbers.isnan()]
    blocks = torch.nn.functional.pad(numbers, (0, -len(numbers) % 31)).view(-1, 31)
    whole = torch.cat([blocks, numbers.max().expand(len(blocks), 1)], 1)  # the largest settles the scale
    values = torch.cat([whole * 2.0**k for k in (-100, -7, 0, 90)])
    assert torch.equal(encode(q, values).dequantize(), values)


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_thread_count_does_not_matter(q: Quantizer) -> None:
    weight = torch.cat([edge_rows(512), torch.randn(300, 512)])
    found = []
    for threads in (1, 2, 7):
        with on_threads(threads):
            found.append(encode(q, weight).buffers)
    for other in found[1:]:
        assert all(torch.equal(other[name], buffer) for name, buffer in found[0].items())


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_empty_weights_and_refusals(q: Quantizer) -> None:
    for shape in ((0, 64), (3, 0)):
        assert encode(q, torch.zeros(shape)).shape == shape
    with pytest.raises(ShapeError, match="multiple of 32, got 48"):
        encode(q, torch.zeros(4, 48))
    weight = torch.zeros(5000, 64)
    weight[4000, 33] = torch.inf
    with pytest.raises(ValueDomainError, match="row 4000, column 33"):
        encode(q, weight)


def test_stacks_are_for_mxfp8_only() -> None:
    weight = torch.randn(3, 4, 64)
    assert "mistral.rs" in (MXFP4.why_not((3, 4, 64), "f32") or "")
    whole = encode(MXFP8, weight).buffers["codes"]
    assert torch.equal(whole[1], encode(MXFP8, weight[1]).buffers["codes"])

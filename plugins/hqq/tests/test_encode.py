"""Quantizers write mistral.rs' bytes and the hqq package's numbers; the conformance kit; edges."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_hqq_golden import ROWS

from quantry import QuantizedTensor, ShapeError, UsageError, ValueDomainError, unpack_codes
from quantry.testing import (
    CORNERS as KINDS,
    QuantizerSuite,
    corner_weight as weight,
    on_target,
    on_threads,
    tensor_digest,
    worked_example,
)
from quantry_hqq.codec import CODECS
from quantry_hqq.encode import QUANTIZERS
from quantry_hqq.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
ACROSS = ("hqq4", "hqq8")
ALONG = [name for name in BY_NAME if name not in ACROSS]
FIXTURES = Path(__file__).parent / "fixtures"
MISTRALRS = json.loads((FIXTURES / "mistralrs.json").read_text())


def encode(name: str, w: torch.Tensor) -> QuantizedTensor:
    q = BY_NAME[name]
    return q.quantize(w, q.layout_for(tuple(w.shape), "f32"))


def same(one: QuantizedTensor, two: QuantizedTensor) -> bool:
    return all(torch.equal(b, two.buffers[name]) for name, b in one.buffers.items())


class TestHqq4(QuantizerSuite):
    quantizer = BY_NAME["hqq4"]


class TestHqq8(QuantizerSuite):
    quantizer = BY_NAME["hqq8"]


class AlongSuite(QuantizerSuite):
    shapes = ((16, 256), (1, 64), (3, 192), (2, 16, 128))


class TestHqq1Axis1(AlongSuite):
    quantizer = BY_NAME["hqq1_axis1"]
    max_error = 1.2  # two levels, the smallest and the largest weight of a group


class TestHqq2Axis1(AlongSuite):
    quantizer = BY_NAME["hqq2_axis1"]


class TestHqq3Axis1(AlongSuite):
    quantizer = BY_NAME["hqq3_axis1"]


class TestHqq4Axis1(AlongSuite):
    quantizer = BY_NAME["hqq4_axis1"]


class TestHqq8Axis1(AlongSuite):
    quantizer = BY_NAME["hqq8_axis1"]


@pytest.mark.parametrize(
    ("name", "first", "scale", "zero", "sha256"),
    [
        ("hqq4", "0e315487b9dc1f326497baed20437598", "aaaaca3d", "8572f240", "99658e57d3d838e9"),
        ("hqq8", "002b5787b5e20e396495c2ef1b4773a0", "bfbebe3b", "d8d80043", "0e73322e7d351832"),
    ],
)
def test_worked_example(name: str, first: str, scale: str, zero: str, sha256: str) -> None:
    entries = CODECS[0].encode(encode(name, worked_example()))
    raw = entries[""].numpy().tobytes()
    assert raw.hex().startswith(first)
    assert hashlib.sha256(raw).hexdigest()[:16] == sha256
    found = [entries[suffix].numpy().tobytes()[:4].hex() for suffix in (".scales", ".zeros")]
    assert found == [scale, zero]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACROSS)
def test_entries_equal_mistralrs(name: str, kind: str) -> None:
    entries = CODECS[0].encode(encode(name, weight(kind)))
    assert {suffix: tensor_digest(t) for suffix, t in entries.items()} == MISTRALRS[name][kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALONG)
def test_numbers_equal_the_hqq_package(name: str, kind: str) -> None:
    golden, bits = np.load(FIXTURES / "hqq.npz"), BY_NAME[name].layout_for((1, 64), "f32").bits
    found = encode(name, weight(kind)[:ROWS]).buffers
    want = {part: torch.from_numpy(golden[f"{bits}.{kind}.{part}"]) for part in ("codes", "scale", "zero")}
    assert torch.equal(unpack_codes(found["codes"], bits, 256), want["codes"])
    assert torch.equal(found["scales"], want["scale"])
    if kind == "small" or bits == 8:  # no error of 0.15: the p-norm is not felt
        assert torch.equal(found["zeros"], want["zero"])
    off = (found["zeros"] - want["zero"]).abs()  # torch's pow is off by a unit at times
    assert (off <= 2**-22 * want["zero"].abs().clamp(min=1)).all()


def test_the_whole_matrix_decides_when_to_stop() -> None:
    """A group beside others that go on improving is moved further than alone."""
    w = weight("ties")
    together, alone = encode("hqq2_axis1", w), encode("hqq2_axis1", w[:1])
    assert torch.equal(together.buffers["scales"][:1], alone.buffers["scales"])
    assert BY_NAME["hqq2_axis1"].row_block is None
    parts = [encode("hqq2_axis1", row[None]).buffers["zeros"] for row in w]
    assert not torch.equal(torch.cat(parts), together.buffers["zeros"])


@pytest.mark.parametrize("target", LIBRARY.TARGETS)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_target_writes_the_same_bytes(name: str, target: str) -> None:
    w = torch.cat([weight(kind) for kind in KINDS if kind != "huge"])[:37, :192]
    expected = encode(name, w)
    with on_target(LIBRARY, target):
        assert same(encode(name, w), expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_thread_count_does_not_matter(name: str) -> None:
    w = torch.randn(150, 576)
    expected = encode(name, w)
    for threads in (1, 3, 16):
        with on_threads(threads):
            assert same(encode(name, w), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BY_NAME)
def test_half_weights_are_widened(name: str, dtype: torch.dtype) -> None:
    w = weight("wide")[:7].to(dtype)
    assert same(encode(name, w), encode(name, w.float()))


@pytest.mark.parametrize("name", BY_NAME)
def test_each_matrix_of_a_stack_is_packed_alone(name: str) -> None:
    w = torch.randn(3, 5, 64) * torch.tensor([0.1, 1, 10])[:, None, None]
    whole = encode(name, w)
    for i, matrix in enumerate(w):
        one = encode(name, matrix)
        assert all(torch.equal(whole.buffers[n][i], b) for n, b in one.buffers.items())


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (2, 0, 64), (0, 3, 64)])
@pytest.mark.parametrize("name", BY_NAME)
def test_empty_weights(name: str, shape: tuple[int, ...]) -> None:
    assert encode(name, torch.zeros(shape)).dequantize().shape == shape


@pytest.mark.parametrize("value", [1e-45, 1e-40, 1e-20, 1e-3, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("name", BY_NAME)
def test_any_size_gives_finite_numbers(name: str, value: float) -> None:
    w = torch.linspace(-value, value, 64 * 64).view(64, 64)
    found = encode(name, w).dequantize()
    assert found.isfinite().all()
    # scales stop at 1/20000, of the package below a range of 10^-4 at 1; the zero may move half a step more
    floor = 1e-4 if name in ACROSS else 1.0
    levels = 2 ** BY_NAME[name].layout_for((1, 64), "f32").bits - 1
    assert (found - w).abs().max() <= max(2 * value / levels, floor if value < 1e-4 else 1e-4)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_range_beyond_float32_is_refused_by_place(name: str) -> None:
    w = torch.zeros(64, 64)
    w[5, 3], w[5, 7] = 3e38, -3.1e38
    if name in ACROSS:  # groups of columns of this shape
        w[9, 7] = 3e38
    with pytest.raises(ValueDomainError, match=r"weight is -3\.09.* at row 5, column 7: the scale or"):
        encode(name, w)


def test_what_does_not_divide_is_refused() -> None:
    assert "groups of 64" in (BY_NAME["hqq4"].why_not((3, 72), "f32") or "")
    assert BY_NAME["hqq4"].why_not((8, 72), "f32") is None  # 576 weights are nine groups
    with pytest.raises(ShapeError, match="rows of 72 do not divide into groups of 64"):
        encode("hqq4_axis1", torch.zeros(8, 72))
    with pytest.raises(UsageError, match="hqq4 makes affine:b4,g64,out,float,f32"):
        BY_NAME["hqq4"].quantize(torch.zeros(2, 64), BY_NAME["hqq8"].layout_for((2, 64), "f32"))

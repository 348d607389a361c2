"""Quantizers write mistral.rs' bytes; the conformance kit; what cannot be held is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from quantry import QuantizedTensor, ShapeError, UsageError, ValueDomainError
from quantry.testing import (
    CORNERS as KINDS,
    QuantizerSuite,
    corner_weight as weight,
    on_target,
    on_threads,
    tensor_digest,
    worked_example,
)
from quantry_fp8.codec import CODECS
from quantry_fp8.encode import QUANTIZERS, Fp8, Fp8Channel, Fp8Q8
from quantry_fp8.f8q8 import F8q8
from quantry_fp8.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
CODEC = {"fp8": CODECS[0], "f8q8": CODECS[1]}
GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "mistralrs.json").read_text())
LARGEST = torch.finfo(torch.float32).max


def encode(name: str, w: torch.Tensor) -> QuantizedTensor:
    q = BY_NAME[name]
    return q.quantize(w, q.layout_for(tuple(w.shape), "f32"))


def same(one: QuantizedTensor, two: QuantizedTensor) -> bool:
    return all(torch.equal(b, two.buffers[name]) for name, b in one.buffers.items())


class TestFp8(QuantizerSuite):
    quantizer = Fp8()


class TestFp8Channel(QuantizerSuite):
    quantizer = Fp8Channel()


class TestF8q8(QuantizerSuite):
    quantizer = Fp8Q8()


@pytest.mark.parametrize(
    ("name", "first", "sha256"),
    [
        ("fp8", "faf5eb5a7077f9f3e7657278f7f0dd6b747af5ed4d6f76f9f3e9627178f8f1e2", "cde9ad36fc351465"),
        ("f8q8", "4281aedb0835628ebbe815426f9bc8f5224f7ca9d603305d89b6e3103d6a96c3f0", "83bc4c8e9d2e30a6"),
    ],
)
def test_worked_example(name: str, first: str, sha256: str) -> None:
    entries = CODEC[name].encode(encode(name, worked_example()))
    raw = entries[""].view(torch.uint8).numpy().tobytes()
    assert raw.hex().startswith(first)
    assert hashlib.sha256(raw).hexdigest()[:16] == sha256
    if name == "fp8":
        found = {n: entries[f".{n}"].numpy().tobytes().hex() for n in ("quant_scale", "dequant_w_scale")}
        assert found == {"quant_scale": "0000d043", "dequant_w_scale": "d9891d3b"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CODEC)
def test_entries_equal_mistralrs(name: str, kind: str) -> None:
    if (name, kind) == ("f8q8", "huge"):
        pytest.skip("mistral.rs stores scales 10^28 too small there; this is refused below")
    entries = CODEC[name].encode(encode(name, weight(kind)))
    assert {suffix: tensor_digest(t) for suffix, t in entries.items()} == GOLDEN[name][kind]


@pytest.mark.parametrize("kind", KINDS)
def test_channel_is_the_nearest_code_of_each_row(kind: str) -> None:
    w = weight(kind)[:, :250].contiguous()
    scale = w.abs().amax(1).div(448).clamp(min=2**-126)
    codes = (w / scale[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
    found = encode("fp8_channel", w).buffers
    assert torch.equal(found["scales"].flatten(), scale)
    assert torch.equal(found["codes"], codes)


@pytest.mark.parametrize("target", LIBRARY.TARGETS)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_target_writes_the_same_bytes(name: str, target: str) -> None:
    w = torch.cat([weight(kind) for kind in KINDS if kind != "huge"])[:, :251]
    expected = encode(name, w)
    with on_target(LIBRARY, target):
        assert same(encode(name, w), expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_thread_count_does_not_matter(name: str) -> None:
    w = torch.randn(500, 1001)
    expected = encode(name, w)
    for threads in (1, 3, 16):
        with on_threads(threads):
            assert same(encode(name, w), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BY_NAME)
def test_half_weights_are_widened(name: str, dtype: torch.dtype) -> None:
    w = weight("wide")[:, :77].to(dtype)
    assert same(encode(name, w), encode(name, w.float()))


@pytest.mark.parametrize("name", BY_NAME)
def test_each_matrix_of_a_stack_is_packed_alone(name: str) -> None:
    w = torch.randn(3, 5, 37) * torch.tensor([0.1, 1, 10])[:, None, None]
    whole = encode(name, w)
    for i, matrix in enumerate(w):
        one = encode(name, matrix)
        assert all(torch.equal(whole.buffers[n][i], b) for n, b in one.buffers.items())


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (2, 0, 64), (0, 3, 64)])
@pytest.mark.parametrize("name", BY_NAME)
def test_empty_weights(name: str, shape: tuple[int, ...]) -> None:
    assert encode(name, torch.zeros(shape)).dequantize().shape == shape


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 2.0**-126, 1e-20, 1.0, 141.0, 1e30, 1.5e38, LARGEST])
@pytest.mark.parametrize("name", BY_NAME)
def test_any_size_gives_finite_numbers_or_is_refused(name: str, value: float) -> None:
    limit = {"fp8": 3e38, "f8q8": 141.6, "fp8_channel": LARGEST}[name]
    w = torch.full((4, 40), value / 2 if value <= limit else 0.0)
    w[2, 7] = -value
    if value > limit:
        with pytest.raises(ValueDomainError, match=r"weight is -.* at row 2, column 7: "):
            encode(name, w)
        return
    found = encode(name, w).dequantize()
    assert found.isfinite().all()
    # half a step of 3 mantissa bits and what the scale adds, or what is below the smallest number of the type
    assert ((found - w).abs() <= torch.maximum(w.abs() * 2**-3.8, torch.tensor(2.0**-9))).all()


def test_refusal_in_a_stack_names_the_matrix() -> None:
    w = torch.zeros(3, 4, 64)
    w[2, 1, 33] = 500
    with pytest.raises(ValueDomainError, match=r"weight is 500\.0 at matrix 2, row 1, column 33: .* 141\.6"):
        encode("f8q8", w)


def test_other_layouts_and_types_are_refused() -> None:
    with pytest.raises(UsageError, match="fp8 makes float:e4m3,0x0,f32"):
        BY_NAME["fp8"].quantize(torch.zeros(2, 32), F8q8())
    for q in QUANTIZERS:
        assert "f64" in (q.why_not((2, 32), "f64") or "")
        with pytest.raises(ShapeError):
            q.quantize(torch.zeros(32), q.layout_for((2, 32), "f32"))

"""Encoders write llama.cpp's bytes: against `libgguf` (its C code) and golden files of its own library."""

from __future__ import annotations

import itertools
from pathlib import Path

import libgguf
import numpy as np
import pytest
import torch
from ggml_samples import float_rows
from grid_samples import importance_of
from hypothesis import given, settings, strategies as st

from quantry import (
    PluginError,
    QuantizedTensor,
    Quantizer,
    ShapeError,
    UsageError,
    ValueDomainError,
    canonical_name,
)
from quantry.testing import QuantizerSuite
from quantry_gguf import native
from quantry_gguf.encode import QUANTIZERS
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME

BY_QUANTIZER = {q.name.removeprefix("ggml_"): q for q in QUANTIZERS}  # by ggml type
NAMES = list(BY_QUANTIZER)
UNKNOWN_TO_LIBGGUF = ("q8_1", "q8_k", "q2_0")  # only the golden files know them
SEARCHED = [n for n, q in BY_QUANTIZER.items() if q.takes_importance]
IN_LIBGGUF = [n for n in NAMES if n not in UNKNOWN_TO_LIBGGUF]
GOLDEN = Path(__file__).parent / "fixtures" / "ggml"


def encode(name: str, weight: torch.Tensor, stats: torch.Tensor | None = None) -> QuantizedTensor:
    return BY_QUANTIZER[name].quantize(weight, GgmlBlocks(name), stats)


def encoded_bytes(name: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    stats = None if importance is None else torch.from_numpy(importance)
    return encode(name, torch.from_numpy(np.ascontiguousarray(rows)), stats).buffers["blocks"].numpy()


@pytest.mark.parametrize("columns", [256, 768])
@pytest.mark.parametrize("name", IN_LIBGGUF)
def test_bytes_equal_libgguf(name: str, columns: int) -> None:
    for kind, rows in float_rows(columns, seed=3, repeat=20).items():
        expected = libgguf.quantize_rows(rows, BY_NAME[name].id)
        np.testing.assert_array_equal(encoded_bytes(name, rows), expected, err_msg=kind)


@pytest.mark.parametrize("weights", ["positive", "holes", "zero"])
@pytest.mark.parametrize("name", SEARCHED)
def test_bytes_with_importance_equal_libgguf(name: str, weights: str) -> None:
    importance = importance_of(weights, 768)
    for kind, rows in float_rows(768, seed=4, repeat=6).items():
        expected = libgguf.quantize_rows(rows, BY_NAME[name].id, importance)
        np.testing.assert_array_equal(encoded_bytes(name, rows, importance), expected, err_msg=kind)


@pytest.mark.parametrize("name", NAMES)
def test_golden_bytes(name: str) -> None:
    source, golden = np.load(GOLDEN / "rows.npz"), np.load(GOLDEN / f"{name}.npz")
    np.testing.assert_array_equal(encoded_bytes(name, source["rows"]), golden["encoded"])
    if name in SEARCHED:
        found = encoded_bytes(name, source["rows"], source["importance"])
        np.testing.assert_array_equal(found, golden["encoded_importance"])


@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(IN_LIBGGUF),
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_any_finite_bits_equal_libgguf(seed: int, name: str, rows: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (rows, groups * 256), np.uint32)
    # mostly one common exponent: fully random bits leave one significant value a block
    narrow = (bits & 0x807FFFFF) | np.uint32(rng.integers(1, 254)) << np.uint32(23)
    values = np.where(rng.random(bits.shape) < rng.choice([0, 0.1, 1]), bits, narrow).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    expected = libgguf.quantize_rows(values, BY_NAME[name].id)
    np.testing.assert_array_equal(encoded_bytes(name, values), expected)


@pytest.mark.parametrize("target", native.TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_target_writes_the_same_bytes(name: str, target: str) -> None:
    if not native.library().quantry_gguf_target_runs(native.TARGETS.index(target)):
        pytest.skip(f"needs a machine with {target}")
    rows = np.concatenate(list(float_rows(512, repeat=3).values()))
    importance = importance_of("holes", 512)
    expected = encoded_bytes(name, rows), encoded_bytes(name, rows, importance)
    native.set_target(target)
    try:
        found = encoded_bytes(name, rows), encoded_bytes(name, rows, importance)
    finally:
        native.set_target(None)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("name", NAMES)
def test_thread_count_does_not_matter(name: str) -> None:
    weight = torch.from_numpy(np.concatenate(list(float_rows(768, repeat=2).values())))
    stats = torch.from_numpy(importance_of("positive", 768))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7, 64):
            torch.set_num_threads(threads)
            found.append([encode(name, weight, s).buffers["blocks"] for s in (None, stats)])
    finally:
        torch.set_num_threads(before)
    for plain, weighted in found[1:]:
        assert torch.equal(plain, found[0][0])
        assert torch.equal(weighted, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_weights_are_widened(name: str, dtype: torch.dtype) -> None:
    weight = torch.randn(4, 256).to(dtype)
    assert torch.equal(encode(name, weight).buffers["blocks"], encode(name, weight.float()).buffers["blocks"])


@pytest.mark.parametrize("name", NAMES)
def test_stack_of_experts_has_an_importance_each(name: str) -> None:
    weight, stats = torch.randn(3, 5, 512), torch.rand(3, 512)
    whole = encode(name, weight, stats).buffers["blocks"]
    shared = encode(name, weight, stats[1]).buffers["blocks"]
    for e in range(3):
        assert torch.equal(whole[e], encode(name, weight[e], stats[e]).buffers["blocks"])
        assert torch.equal(shared[e], encode(name, weight[e], stats[1]).buffers["blocks"])


@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (2, 0, 256), (0, 3, 256)])
@pytest.mark.parametrize("name", NAMES)
def test_empty_weights(name: str, shape: tuple[int, ...]) -> None:
    assert encode(name, torch.zeros(shape)).shape == shape
    assert encode(name, torch.zeros(shape), torch.ones(shape[-1])).shape == shape


for _name, _quantizer in BY_QUANTIZER.items():
    _facts = {
        "quantizer": _quantizer,
        "shapes": ((17, 256), (2, 16, 256), (5, 96), (7, 31)),
        "zero_is_no_preference": False,  # llama.cpp's scale of such a block is 0
    }
    globals()[f"Test{_name.title()}"] = type(f"Test{_name.title()}", (QuantizerSuite,), _facts)


def powers_of_two() -> np.ndarray:
    """Rows of 32 whose largest magnitude lies up to 100 steps below a power of two, or on it."""
    powers = np.float32(2) ** np.arange(-148, 128, dtype=np.float32)
    largest = powers.view(np.int32)[:, None] - np.array([*range(46), 63, 87, 88, 89, 90, 100], np.int32)
    rows = np.zeros((largest.size, 32), np.float32)
    rows[:, 5] = np.maximum(largest, 1).reshape(-1).view(np.float32)
    return rows


def test_exponents_of_mxfp4_are_those_of_log2f_in_c() -> None:
    rows = powers_of_two()
    np.testing.assert_array_equal(
        encoded_bytes("mxfp4", rows), libgguf.quantize_rows(rows, BY_NAME["mxfp4"].id)
    )


def test_every_scale_of_nvfp4() -> None:
    largest = np.float32(6) * np.geomspace(1e-4, 1e4, 8000, dtype=np.float32)
    rows = np.random.default_rng(8).uniform(-1, 1, (8000, 64)).astype(np.float32) * largest[:, None]
    np.testing.assert_array_equal(
        encoded_bytes("nvfp4", rows), libgguf.quantize_rows(rows, BY_NAME["nvfp4"].id)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_first_value_that_is_not_finite_is_named(value: float) -> None:
    weight = torch.zeros(6000, 1024)
    weight[5000, 77] = value
    weight[5001, 3] = value
    with pytest.raises(ValueDomainError, match=r"row 5000, column 77"):
        encode("q8_0", weight)
    with pytest.raises(ValueDomainError, match=rf"weight is {value} at matrix 2, row 1000, column 77"):
        encode("q4_k", weight.view(3, 2000, 1024).to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bad_importance_is_named(value: float) -> None:
    stats = torch.ones(256)
    stats[9] = value
    with pytest.raises(ValueDomainError, match="column 9"):
        encode("q4_k", torch.zeros(2, 256), stats)


@pytest.mark.parametrize("shape", [(255,), (2, 256), (1, 1, 256), ()])
def test_importance_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\[256\]"):
        encode("q4_k", torch.zeros(2, 256), torch.ones(shape))


def test_another_layout_is_refused() -> None:
    with pytest.raises(UsageError, match="ggml:q8_0"):
        BY_QUANTIZER["q4_k"].quantize(torch.zeros(2, 256), GgmlBlocks("q8_0"))


def test_fallbacks_promotions_and_widths() -> None:
    table = {q.name: (q.fallback, q.sensitive, q.width) for q in QUANTIZERS}
    assert table == {
        # mistral.rs
        "q4_0": (("f32",), "q6_k", None),
        "q4_1": (("f32",), "q6_k", None),
        "q5_0": (("f32",), "q8_0", None),
        "q5_1": (("f32",), "q8_0", None),
        "q8_0": (("f32",), None, 8),
        "q8_1": (("f32",), "q8_0", None),
        "q2_k": (("q4_0", "f32"), "q6_k", 2),
        "q3_k": (("q4_0", "f32"), "q6_k", 3),
        "q4_k": (("q4_1", "f32"), "q6_k", 4),
        "q5_k": (("q5_0", "f32"), "q8_0", 5),
        "q6_k": (("q5_1", "f32"), "q8_0", 6),
        "q8_k": (("q8_1", "f32"), "q8_0", None),
        # llama.cpp
        "iq4_nl": (("f32",), "q6_k", 4),
        "iq4_xs": (("iq4_nl", "f32"), "q6_k", 4),
        "tq1_0": (("q4_0", "f32"), "q6_k", None),
        "tq2_0": (("q4_0", "f32"), "q6_k", None),
        "ggml_mxfp4": (("f32",), "q8_0", None),
        "ggml_nvfp4": (("q4_0", "f32"), "q6_k", None),
        "q1_0": (("q4_0", "f32"), "q6_k", None),
        "q2_0": (("q4_0", "f32"), "q6_k", None),
    }


def test_names_stay_apart_in_any_spelling() -> None:
    assert all(isinstance(q, Quantizer) for q in QUANTIZERS)
    spelled = [canonical_name(q.name) for q in QUANTIZERS]
    assert len(set(spelled)) == len(spelled)
    assert {"q4k", "q80"} <= set(spelled)
    for a, b in itertools.combinations(QUANTIZERS, 2):
        assert type(a) is not type(b)


def test_missing_native_library_is_a_plugin_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise PluginError("quantry-gguf was installed without its native library")

    monkeypatch.setattr(native, "library", missing)
    with pytest.raises(PluginError, match="native library"):
        encode("q8_0", torch.zeros(1, 32))
    assert BY_QUANTIZER["q8_0"].why_not((1, 32), "f32") is None  # sizes can be planned without it

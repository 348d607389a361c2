"""Grid encoders write llama.cpp's bytes: against `libgguf` (its C code), IQ1 against golden files."""

from __future__ import annotations

from ctypes import addressof, c_int64
from pathlib import Path

import libgguf
import numpy as np
import pytest
import torch
from ggml_samples import float_rows
from grid_samples import IMPORTANCES, grid_rows, importance_of
from hypothesis import given, settings, strategies as st

from quantry import ShapeError, UsageError, ValueDomainError
from quantry.testing import QuantizerSuite, on_threads
from quantry_gguf import native
from quantry_gguf.encode_grid import QUANTIZERS
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME

BY_QUANTIZER = {q.name: q for q in QUANTIZERS}
NAMES = list(BY_QUANTIZER)
NEEDING = [n for n in NAMES if BY_QUANTIZER[n].needs == "importance"]
GOLDEN_ONLY = ["iq1_s", "iq1_m"]  # make_grid_oracle.py says why
IN_LIBGGUF = [n for n in NAMES if n not in GOLDEN_ONLY]
GOLDEN = Path(__file__).parent / "fixtures" / "ggml" / "iq1_rows.npz"


def encoded(name: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    stats = None if importance is None else torch.from_numpy(importance)
    return blocks_of(name, torch.from_numpy(rows), stats).numpy()


def blocks_of(name: str, weight: torch.Tensor, stats: torch.Tensor | None = None) -> torch.Tensor:
    return BY_QUANTIZER[name].quantize(weight, GgmlBlocks(name), stats).buffers["blocks"]


def kinds_of(name: str) -> list[str | None]:
    return [*IMPORTANCES] if name in NEEDING else [None, *IMPORTANCES]


def stats_of(name: str, columns: int) -> torch.Tensor | None:
    return torch.from_numpy(importance_of("positive", columns)) if name in NEEDING else None


@pytest.mark.parametrize("name", IN_LIBGGUF)
def test_bytes_equal_libgguf(name: str) -> None:
    for kind in kinds_of(name):
        importance = None if kind is None else importance_of(kind, 768)
        for numbers, rows in grid_rows(768, seed=3, repeat=4).items():
            expected = libgguf.quantize_rows(rows, BY_NAME[name].id, importance)
            found = encoded(name, rows, importance)
            np.testing.assert_array_equal(found, expected, err_msg=f"{numbers}, importance {kind}")


@pytest.mark.parametrize("name", GOLDEN_ONLY)
def test_golden_bytes(name: str) -> None:
    golden = np.load(GOLDEN)
    for kind in kinds_of(name):
        importance = None if kind is None else golden[f"importance_{kind}"]
        expected = golden[f"{name}_{'none' if kind is None else kind}"]
        np.testing.assert_array_equal(encoded(name, golden["rows"], importance), expected, err_msg=str(kind))


@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(IN_LIBGGUF),
    rows=st.integers(1, 3),
    blocks=st.integers(1, 3),
    weighted=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_bits_equal_libgguf(seed: int, name: str, rows: int, blocks: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (rows, blocks * 256)
    # exponents below 2^30: weight·error² stays finite, or llama.cpp ends the process
    exponents = np.where(rng.random(shape) < rng.choice([0, 0.1, 1]), rng.integers(0, 157, shape), 0)
    exponents = np.maximum(exponents, rng.integers(0, 157))
    bits = rng.integers(0, 2**32, shape, np.uint32) & 0x807FFFFF | (exponents << 23).astype(np.uint32)
    values = bits.view(np.float32)
    importance = None
    if weighted or name in NEEDING:
        importance = np.where(rng.random(shape[1]) < 0.2, 0, rng.random(shape[1]) ** 4).astype(np.float32)
    expected = libgguf.quantize_rows(values, BY_NAME[name].id, importance)
    np.testing.assert_array_equal(encoded(name, values, importance), expected)


@pytest.mark.parametrize("target", native.TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_target_writes_the_same_bytes(name: str, target: str) -> None:
    if not native.library().quantry_gguf_target_runs(native.TARGETS.index(target)):
        pytest.skip(f"needs a machine with {target}")
    rows = np.concatenate(list(float_rows(768, repeat=2).values()))  # those that overflow, too
    for kind in kinds_of(name):
        importance = None if kind is None else importance_of(kind, 768)
        expected = encoded(name, rows, importance)
        native.set_target(target)
        try:
            found = encoded(name, rows, importance)
        finally:
            native.set_target(None)
        np.testing.assert_array_equal(found, expected, err_msg=str(kind))


@pytest.mark.parametrize("name", NAMES)
def test_thread_count_does_not_matter(name: str) -> None:
    weight = torch.from_numpy(np.concatenate(list(grid_rows(768).values())))
    found = []
    for threads in (1, 2, 7):
        with on_threads(threads):
            found.append(blocks_of(name, weight, stats_of(name, 768)))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("name", NAMES)
def test_stack_of_experts_has_an_importance_each(name: str) -> None:
    weight, stats = torch.randn(3, 5, 512), torch.rand(3, 512)
    whole = blocks_of(name, weight, stats)
    shared = blocks_of(name, weight, stats[1])
    for e in range(3):
        assert torch.equal(whole[e], blocks_of(name, weight[e], stats[e]))
        assert torch.equal(shared[e], blocks_of(name, weight[e], stats[1]))


@pytest.mark.parametrize("name", NAMES)
def test_importance_moves_the_error_to_other_columns(name: str) -> None:
    torch.manual_seed(0)
    weight, stats = torch.randn(64, 512), torch.ones(512)
    stats[:256:2] = 100
    off = BY_QUANTIZER[name].quantize(weight, GgmlBlocks(name), stats).dequantize() - weight
    heavy, light = off[:, :256:2].square().mean(), off[:, 1:256:2].square().mean()
    assert heavy < light


@pytest.mark.parametrize("name", NEEDING)
def test_missing_importance_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="needs importance"):
        blocks_of(name, torch.randn(2, 256))


@pytest.mark.parametrize("name", NAMES)
def test_expected_error_is_what_normal_weights_give(name: str) -> None:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))
    stats = torch.ones(1024) if name in NEEDING else None
    quantizer = BY_QUANTIZER[name]
    off = quantizer.quantize(weight, GgmlBlocks(name), stats).dequantize() - weight
    found = (off.square().mean() / weight.square().mean()).sqrt().item()
    # three digits, and four standard deviations of a mean of 2^20 squares, whose own are sqrt(2) of the mean
    assert quantizer.expected_error is not None
    assert abs(found - quantizer.expected_error) < 0.0005 + 4 * found * 2**-10.5


@pytest.mark.parametrize("name", NAMES)
def test_bad_weights_are_refused_by_place(name: str) -> None:
    weight = torch.zeros(5, 512)
    weight[3, 77] = torch.nan
    with pytest.raises(ValueDomainError, match="row 3, column 77"):
        blocks_of(name, weight, torch.ones(512))
    with pytest.raises(ShapeError, match="260"):
        blocks_of(name, torch.zeros(2, 260), torch.ones(260))


def test_a_group_of_zeros_takes_no_place_in_iq3_s() -> None:
    weight = torch.randn(1, 256)
    weight[0, 32:64] = 0
    without = blocks_of("iq3_s", weight)[0]
    assert not without[2 + 56 : 2 + 64].any()  # the last of eight groups of indices is left over
    assert not without[74 + 28 : 74 + 32].any()  # and of signs


def test_native_functions_refuse_what_they_do_not_know() -> None:
    library, need = native.library(), c_int64()
    assert library.quantry_gguf_grid_tables(12, None, 0, addressof(need)) == 2
    iq2_s = BY_NAME["iq2_s"].id
    assert library.quantry_gguf_grid_tables(iq2_s, None, 0, None) == 4
    assert library.quantry_gguf_grid_tables(iq2_s, None, 0, addressof(need)) == 0
    short = torch.empty(need.value - 1, dtype=torch.uint8)
    assert library.quantry_gguf_grid_tables(iq2_s, short.data_ptr(), len(short), addressof(need)) == 4
    x, out, bad = torch.zeros(1, 256), torch.zeros(82, dtype=torch.uint8), c_int64()
    for target, kind, columns, tables, status in (
        (99, iq2_s, 256, short.data_ptr(), 1),
        (0, 12, 256, short.data_ptr(), 2),
        (0, iq2_s, 255, short.data_ptr(), 3),
        (0, iq2_s, 256, None, 4),
    ):
        found = library.quantry_gguf_encode_grid(
            target, kind, 0, x.data_ptr(), 256, None, tables, out.data_ptr(), 1, columns, addressof(bad), 1
        )
        assert found == status


for _quantizer in QUANTIZERS:
    _name = f"Test{type(_quantizer).__name__}"
    _facts = {
        "quantizer": _quantizer,
        "shapes": ((9, 512), (2, 3, 256)),
        "zero_is_no_preference": False,  # as in llama.cpp
    }
    globals()[_name] = type(_name, (QuantizerSuite,), _facts)

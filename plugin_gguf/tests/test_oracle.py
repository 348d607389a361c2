"""Dequantization equals llama.cpp bit for bit.

Against `libgguf` (its C code), `gguf.quants` (its Python port) and golden files of its own library, which
make_oracle.py writes.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import libgguf
import numpy as np
import pytest
import torch
from ggml_samples import float_rows, raw_blocks

from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME, TYPES

QUANTIZED = [t.name for t in TYPES if not t.is_dense]
IN_LIBGGUF = [n for n in QUANTIZED if n not in ("q8_1", "q8_k", "q2_0")]
IN_GGUF = [n for n in IN_LIBGGUF if n != "q1_0"]
GOLDEN = Path(__file__).parent / "fixtures" / "ggml"
RANDOM_BLOCKS = 4000


def dequantize(name: str, blocks: np.ndarray) -> np.ndarray:
    layout = GgmlBlocks(name)
    rows = torch.from_numpy(np.ascontiguousarray(blocks))
    shape = (len(rows), rows.shape[1] // layout.ggml.block_bytes * layout.ggml.block)
    return layout.dequantize({"blocks": rows}, shape).numpy()


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    found, expected = found.view(np.uint32), expected.view(np.uint32)
    np.testing.assert_array_equal(np.where(nan, 0, found), np.where(nan, 0, expected))


@pytest.mark.parametrize("name", IN_LIBGGUF)
def test_random_and_hostile_blocks_equal_libgguf(name: str) -> None:
    blocks = raw_blocks(name, RANDOM_BLOCKS)
    assert_same_bits(dequantize(name, blocks), libgguf.dequantize_rows(blocks, BY_NAME[name].id))


@pytest.mark.parametrize("name", IN_GGUF)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_and_hostile_blocks_equal_gguf(name: str) -> None:
    blocks = raw_blocks(name, RANDOM_BLOCKS, seed=1)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType(BY_NAME[name].id))
    assert_same_bits(dequantize(name, blocks), expected)


# libgguf prepares the IQ1 and IQ2 encoders for 20 s; their golden files hold encoded rows
@pytest.mark.parametrize("name", [n for n in IN_LIBGGUF if not n.startswith(("iq1", "iq2"))])
def test_encoded_rows_equal_libgguf(name: str) -> None:
    kinds = float_rows(512, repeat=40)
    rows = np.concatenate([kinds[kind] for kind in ("normal", "student-t", "positive", "negative", "3000")])
    blocks = libgguf.quantize_rows(rows, BY_NAME[name].id)
    assert_same_bits(dequantize(name, blocks), libgguf.dequantize_rows(blocks, BY_NAME[name].id))


def test_q8_1_is_d_times_code() -> None:
    blocks = raw_blocks("q8_1", RANDOM_BLOCKS)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    with np.errstate(invalid="ignore"):
        assert_same_bits(dequantize("q8_1", blocks), d * blocks[:, 4:].view(np.int8).astype(np.float32))


def test_q8_k_is_d_times_code() -> None:
    blocks = raw_blocks("q8_k", RANDOM_BLOCKS)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = blocks[:, :4].copy().view("<f4") * blocks[:, 4:260].view(np.int8).astype(np.float32)
    assert_same_bits(dequantize("q8_k", blocks), expected)


def test_q2_0_is_d_times_code_minus_one() -> None:
    blocks = raw_blocks("q2_0", RANDOM_BLOCKS)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    codes = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(blocks), 64)
    with np.errstate(invalid="ignore"):
        assert_same_bits(dequantize("q2_0", blocks), (codes.astype(np.float32) - 1) * d)


@pytest.mark.parametrize("name", [n for n in QUANTIZED if n != "q8_1"])
def test_golden_blocks(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    assert_same_bits(dequantize(name, golden["blocks"]), golden["values"].view(np.float32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_long_input_equals_short_inputs(name: str) -> None:
    """Chunking is invisible: a consistency test of our code with itself."""
    block = BY_NAME[name].block
    blocks = np.resize(raw_blocks(name, 50), ((1 << 20) // block + 3, BY_NAME[name].block_bytes))
    ends = np.concatenate([blocks[:2], blocks[-5:]])
    assert_same_bits(dequantize(name, blocks)[[0, 1, -5, -4, -3, -2, -1]], dequantize(name, ends))


@pytest.mark.parametrize("name", QUANTIZED)
def test_blocks_at_an_odd_byte_of_memory(name: str) -> None:
    blocks = raw_blocks(name, 3)
    memory = torch.empty(blocks.size + 1, dtype=torch.uint8)
    memory[1:] = torch.from_numpy(blocks).flatten()
    odd = memory[1:].view(blocks.shape)
    found = GgmlBlocks(name).dequantize({"blocks": odd}, (len(odd), BY_NAME[name].block)).numpy()
    assert_same_bits(found, dequantize(name, blocks))
    one = GgmlBlocks(name).dequantize({"blocks": odd[:1]}, (1, BY_NAME[name].block)).numpy()
    assert_same_bits(one, found[:1])

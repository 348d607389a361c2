"""NaN and infinite scales: every field of every type, refused at load and reported by verify."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from ggml_samples import HALVES
from gguf_files import F32, FORMAT, Q8_0, T, gguf_bytes, open_gguf

from quantry import FormatError
from quantry_gguf.types import TYPES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E00, 0xFFFF])
@pytest.mark.parametrize(("name", "at"), [(n, at) for n, halves in HALVES.items() for at in halves])
def test_a_half_that_is_not_finite_is_named(path: Path, name: str, at: int, half: int) -> None:
    check(path, name, {at: half & 255, at + 1: half >> 8})


@pytest.mark.parametrize(
    ("name", "bytes_"),
    {
        "mxfp4": {0: 255},
        "q8_k": {3: 0x7F, 2: 0x80},
        "iq1_m": {55: 0xF0, 53: 0xF0},
    }.items(),
)
def test_so_are_the_scales_of_other_kinds(path: Path, name: str, bytes_: dict[int, int]) -> None:
    check(path, name, bytes_)


def check(path: Path, name: str, changes: dict[int, int]) -> None:
    ggml = next(t for t in TYPES if t.name == name)
    data = bytearray(3 * 2 * ggml.block_bytes)
    for at, value in changes.items():
        data[5 * ggml.block_bytes + at] = value
    path.write_bytes(gguf_bytes(tensors=(T("a.weight", (2 * ggml.block, 3), ggml.id, bytes(data)),)))
    checkpoint = open_gguf(path)
    sentence = f"row 2, block 1: the {name} scale is NaN or infinite"
    for rows in (None, slice(2, 3)):
        with pytest.raises(FormatError) as e:
            checkpoint.load("a.weight", rows)
        assert (e.value.file, e.value.tensor, e.value.problem) == (str(path), "a.weight", sentence)
    assert checkpoint.load("a.weight", slice(0, 2)).shape[0] == 2
    assert list(FORMAT.verify(checkpoint.source, checkpoint.detection)) == [(str(path), "a.weight", sentence)]


def test_an_expert_is_named(path: Path) -> None:
    data = bytearray(2 * 3 * 34)
    data[34 * 4 + 1] = 0x7C
    path.write_bytes(gguf_bytes(tensors=(T("a_exps.weight", (32, 3, 2), Q8_0, bytes(data)),)))
    with pytest.raises(FormatError, match="expert 1, row 1, block 0: the q8_0 scale"):
        open_gguf(path)["a_exps.weight"]


def test_trust_loads_them_nevertheless(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(gguf_bytes(tensors=(T("a.weight", (32,), Q8_0, b"\xff" * 34),)))
    monkeypatch.setenv("QUANTRY_TRUST_SCALES", "1")
    assert open_gguf(path)["a.weight"].buffers["blocks"].min() == 255


def test_plain_floats_are_left_to_verify(path: Path) -> None:
    values = struct.pack("<6f", 1, 2, 3, 4, float("nan"), 6)
    path.write_bytes(gguf_bytes(tensors=(T("a.weight", (3, 2), F32, values),)))
    checkpoint = open_gguf(path)
    assert checkpoint["a.weight"].shape == (2, 3)
    assert list(FORMAT.verify(checkpoint.source, checkpoint.detection)) == [
        (str(path), "a.weight", "element [1, 1] is NaN or infinite")
    ]

"""Importance files that lie: each lie is one named error, whatever its size claims to be."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from imatrix_files import Entry, cimatrix, gguf_imatrix, legacy

import quantry
from quantry import DuplicateTensor, FormatError, HeaderError, QuantryError, TruncatedFile, ValueDomainError

GOOD = [Entry("blk.0.ffn_up.weight", [1, 2, 3], calls=2), Entry("blk.1.ffn_up.weight", [4, 5], calls=2)]
LEGACY = legacy(GOOD, tail=struct.pack("<ii", 9, 5) + b"a.txt")
CIMATRIX = cimatrix(GOOD)
BINARY = {".imatrix": legacy, ".cimatrix": cimatrix}
HUGE = 2**31 - 1


def error(path: Path, data: bytes) -> QuantryError:
    path.write_bytes(data)
    with pytest.raises(QuantryError) as e:
        quantry.read_importance(path)
    assert e.value.file == str(path)
    return e.value


@pytest.mark.parametrize(("suffix", "whole"), [(".imatrix", LEGACY), (".cimatrix", CIMATRIX)])
def test_every_cut_is_seen(tmp_path: Path, suffix: str, whole: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    entries_end = len(legacy(GOOD))
    for size in range(len(whole)):
        if suffix == ".imatrix" and size in (entries_end, entries_end + 4):
            continue  # chunks and the text's name are optional
        assert isinstance(error(path, whole[:size]), FormatError), size


@pytest.mark.parametrize("suffix", BINARY)
@pytest.mark.parametrize(
    ("lie", "kind", "words"),
    [
        (lambda make: make(GOOD, n=HUGE), TruncatedFile, "declares 2147483647 entries"),
        (lambda make: make(GOOD, n=0), HeaderError, "declares 0 entries"),
        (lambda make: make([Entry("w", [1], name_bytes=HUGE)]), TruncatedFile, "name of entry 0 takes"),
        (lambda make: make([Entry("w", [1], name_bytes=0)]), HeaderError, "name of entry 0 is impossible"),
        (lambda make: make([Entry("n" * 2000, [1])]), HeaderError, "name of entry 0 is impossible"),
        (lambda make: make([Entry(b"w\0", [1])]), HeaderError, "name of entry 0 is impossible"),
        (lambda make: make([Entry(b"w\xff", [1])]), HeaderError, "name of entry 0 is not UTF-8"),
        (lambda make: make([GOOD[0], GOOD[0]]), DuplicateTensor, "occurs twice"),
        (lambda make: make([Entry("w", [], n=0), GOOD[0]]), HeaderError, "has 0 values"),
        (lambda make: make([Entry("w", [1], n=HUGE)]), TruncatedFile, "has 2147483647 values"),
        (lambda make: make(GOOD, tail=b"\0" * 99), HeaderError, "bytes follow the last entry"),
        (lambda make: make([Entry("w", [1, np.nan])]), ValueDomainError, "is nan at element 1"),
        (lambda make: make([Entry("w", [np.inf])]), ValueDomainError, "is inf at element 0"),
        (lambda make: make([Entry("w", [1, 2, -1])]), ValueDomainError, "is -1.0 at element 2"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_lie_of_a_binary_file_is_named(
    tmp_path: Path, suffix: str, lie: Callable[[object], bytes], kind: type[QuantryError], words: str
) -> None:
    e = error(tmp_path / f"x{suffix}", lie(BINARY[suffix]))
    assert isinstance(e, kind)
    assert words in e.problem
    if kind is ValueDomainError:
        assert e.tensor == "w"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (legacy([Entry("w", [1], calls=-3)]), "-3 calls"),
        (legacy(GOOD, n=-1), "declares -1 entries"),
        (legacy([Entry("w", [1], name_bytes=-5)]), "has -5 bytes"),
        (legacy([Entry("w", [1], n=-5)]), "has -5 values"),
        (legacy(GOOD, tail=struct.pack("<i", -1)), "-1 chunks"),
    ],
)
def test_negative_numbers_of_a_legacy_file_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in error(tmp_path / "x.dat", data).problem


def test_numbers_of_64_bits_claim_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.cimatrix"
    for data in (cimatrix(GOOD, n=2**64 - 1), cimatrix([Entry("w", [1], n=2**63)])):
        assert isinstance(error(path, data), TruncatedFile)


def tensors(**changes: object) -> dict[str, np.ndarray]:
    made = {"w.in_sum2": np.ones((2, 4), np.float32), "w.counts": np.full((2, 1), 3, np.float32)}
    for name, value in changes.items():
        key = {"sums": "w.in_sum2", "counts": "w.counts"}[name]
        if value is None:
            del made[key]
        else:
            made[key] = np.asarray(value)
    return made


@pytest.mark.parametrize(
    ("changes", "kind", "tensor", "words"),
    [
        ({"counts": None}, HeaderError, "w", "no 'w.counts' beside it"),
        ({"sums": None}, HeaderError, "w", "no 'w.in_sum2' beside it"),
        ({"sums": np.ones((2, 4), np.float16)}, HeaderError, "w.in_sum2", "is f16, not f32"),
        ({"counts": np.ones((2, 1), np.int32)}, HeaderError, "w.counts", "is i32, not f32"),
        ({"counts": np.ones((3, 1), np.float32)}, HeaderError, "w.in_sum2", "and 3 counts"),
        ({"sums": np.float32([[1, np.nan, 1, 1]] * 2)}, ValueDomainError, "w.in_sum2", "is nan at element 1"),
        ({"sums": np.float32([[1, 1, -2, 1]] * 2)}, ValueDomainError, "w.in_sum2", "is -2.0 at element 2"),
        ({"counts": np.float32([[1], [-1]])}, ValueDomainError, "w.counts", "is -1.0 at element 1"),
        ({"counts": np.float32([[1e30], [1]])}, HeaderError, "w.counts", "counts 1.0000000150474662e+30"),
        ({"counts": np.float32([[np.inf], [1]])}, ValueDomainError, "w.counts", "is inf at element 0"),
    ],
)
def test_a_lie_of_a_gguf_file_is_named(
    tmp_path: Path, changes: dict[str, object], kind: type[QuantryError], tensor: str, words: str
) -> None:
    with pytest.raises(kind) as e:
        quantry.read_importance(gguf_imatrix(tmp_path / "x.gguf", tensors(**changes)))
    assert e.value.tensor == tensor
    assert words in e.value.problem
    assert e.value.file == str(tmp_path / "x.gguf")


def test_a_model_file_is_told_from_importance(tmp_path: Path) -> None:
    path = gguf_imatrix(tmp_path / "x.gguf", tensors(), type="model")
    assert "'model', not 'imatrix'" in error(path, path.read_bytes()).problem


def test_a_gguf_file_without_entries_is_refused(tmp_path: Path) -> None:
    path = gguf_imatrix(tmp_path / "x.gguf", {"other": np.ones(3, np.float32)})
    assert error(path, path.read_bytes()).problem == "holds importance of no weight"


def test_every_cut_of_a_gguf_file_is_seen(tmp_path: Path) -> None:
    whole = gguf_imatrix(tmp_path / "x.gguf", tensors()).read_bytes()
    end = len(whole) - (-(2 * 4) % 32)  # padding behind the last tensor may be missing
    for size in range(4, end, 7):
        assert isinstance(error(tmp_path / "y.gguf", whole[:size]), FormatError), size


def test_a_file_of_another_suffix_is_of_no_installed_kind(tmp_path: Path) -> None:
    e = error(tmp_path / "x.bin", LEGACY)
    assert isinstance(e, quantry.UsageError)
    assert "is no importance file" in e.problem


@pytest.mark.parametrize("suffix", [".imatrix", ".cimatrix", ".gguf"])
@given(data=st.data())
def test_damage_gives_named_errors_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    whole = bytearray({".imatrix": LEGACY, ".cimatrix": CIMATRIX}.get(suffix, b""))
    if not whole:
        whole = bytearray(gguf_imatrix(folder / "whole", tensors()).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = folder / f"x{suffix}"
    path.write_bytes(whole)
    try:
        found = quantry.read_importance(path)
    except QuantryError:
        return
    assert all(bool(torch.isfinite(v).all()) and bool((v >= 0).all()) for v in found.weights.values())

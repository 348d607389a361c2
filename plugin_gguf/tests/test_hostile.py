"""GGUF files that lie: one made by hand for each way, then mutations of honest ones."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gguf_files import (
    ARCH,
    ARRAY,
    BOOL,
    F32,
    FLOAT,
    FORMAT,
    I64,
    Q4_K,
    Q8_0,
    STRING,
    U8,
    U32,
    T,
    array,
    gguf_bytes,
    kv,
    open_gguf,
    read_everything,
    text,
    u32,
    u64,
)
from hypothesis import given, strategies as st

from quantry import (
    DuplicateTensor,
    FormatError,
    HeaderError,
    OffsetError,
    QuantryError,
    TruncatedFile,
)
from quantry_gguf.types import REMOVED

HUGE = 2**63
TENSOR = T("a.weight", (32, 2), F32, bytes(256))
Lie = tuple[bytes, type[FormatError], str]

# what the file says → its bytes, the error, a piece of the sentence
LIES: dict[str, Lie] = {
    "empty": (b"", HeaderError, "begins with b''"),
    "other magic": (gguf_bytes(magic=b"GGML"), HeaderError, "begins with b'GGML'"),
    "reversed magic": (gguf_bytes(magic=b"FUGG"), HeaderError, "begins with b'FUGG'"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        HeaderError,
        "git lfs pull",
    ),
    "magic only": (b"GGUF", TruncatedFile, "the version takes 4 bytes, 0 are left"),
    "version 0": (gguf_bytes(version=0), HeaderError, "version 0 is unknown"),
    "version 1": (gguf_bytes(version=1), HeaderError, "version 1 is not supported"),
    "version 4": (gguf_bytes(version=4), HeaderError, "version 4 is unknown"),
    "big-endian version 1": (gguf_bytes(version=1 << 24), HeaderError, "version 1 is not supported"),
    "2^63 tensors": (gguf_bytes(n_tensors=HUGE), HeaderError, "more than 2^63-1"),
    "2^64-1 key-values": (gguf_bytes(n_kv=2**64 - 1), HeaderError, "more than 2^63-1"),
    "2^62 tensors": (gguf_bytes(n_tensors=2**62), TruncatedFile, "declares 4611686018427387904 tensors"),
    "2^62 key-values": (gguf_bytes(n_kv=2**62), TruncatedFile, "declares 4611686018427387904 key-values"),
    "one key-value too many": (
        gguf_bytes(n_kv=2),
        TruncatedFile,
        "length of key 1 of 2 takes 8 bytes, 0 are",
    ),
    "one tensor too many": (gguf_bytes(n_tensors=1), TruncatedFile, "name of tensor 0 of 1 takes 8 bytes"),
    # keys
    "empty key": (gguf_bytes((kv("", I64, bytes(8)),)), HeaderError, "key 0 of 1 is empty"),
    "key twice": (gguf_bytes((ARCH, ARCH)), HeaderError, "key 'general.architecture' occurs twice"),
    "key not UTF-8": (gguf_bytes((kv(b"\xff\xfe", U8, b"\0"),)), HeaderError, "key 0 of 1 is not UTF-8"),
    "key with NUL": (gguf_bytes((kv(b"a\0b", U8, b"\0"),)), HeaderError, "contains a NUL byte"),
    "key of 2^63 bytes": (gguf_bytes((text(b"k", HUGE) + bytes(20),)), HeaderError, "at most 2^30 is legal"),
    "key of 2^30 bytes": (
        gguf_bytes((text(b"k", 2**30) + bytes(20),)),
        TruncatedFile,
        "takes 1073741824 bytes",
    ),
    # values
    "value type 13": (gguf_bytes((kv("k", 13, bytes(8)),)), HeaderError, "unknown value type 13"),
    "value not UTF-8": (gguf_bytes((kv("k", STRING, text(b"\xc3")),)), HeaderError, "'k' is not UTF-8"),
    "value of 2^63 bytes": (gguf_bytes((kv("k", STRING, u64(HUGE)),)), HeaderError, "at most 2^30 is legal"),
    "value of 2^20 bytes": (gguf_bytes((kv("k", STRING, u64(2**20)),)), TruncatedFile, "takes 1048576 bytes"),
    "value cut": (gguf_bytes((kv("k", I64, bytes(4)),)), TruncatedFile, "takes 8 bytes, 4 are left"),
    # arrays
    "array of 2^63": (gguf_bytes((kv("k", ARRAY, array(U8, HUGE)),)), HeaderError, "at most 2^30 is legal"),
    "array of 2^61 floats": (gguf_bytes((kv("k", ARRAY, array(FLOAT, 2**61)),)), HeaderError, "at most 2^30"),
    "array of 2^30 floats": (
        gguf_bytes((kv("k", ARRAY, array(FLOAT, 2**30)),)),
        TruncatedFile,
        "4294967296 bytes",
    ),
    "array of arrays": (
        gguf_bytes((kv("k", ARRAY, array(ARRAY, 1, array(U8, 0))),)),
        HeaderError,
        "holds arrays",
    ),
    "array of type 99": (gguf_bytes((kv("k", ARRAY, array(99, 1)),)), HeaderError, "unknown element type 99"),
    "2^30 strings": (
        gguf_bytes((kv("k", ARRAY, array(STRING, 2**30)),)),
        TruncatedFile,
        "string 0 of 1073741824",
    ),
    "string of 2^63 in an array": (
        gguf_bytes((kv("k", ARRAY, array(STRING, 2, text("a") + u64(HUGE))),)),
        TruncatedFile,
        "string 1 of 2 leaves the file",
    ),
    "strings that wrap around": (
        gguf_bytes((kv("k", ARRAY, array(STRING, 3, u64(2**64 - 8) + text("a"))),)),
        TruncatedFile,
        "string 0 of 3 leaves the file",
    ),
    # alignment
    "alignment 0": (
        gguf_bytes((kv("general.alignment", U32, u32(0)),)),
        HeaderError,
        "0, not a power of two",
    ),
    "alignment 48": (gguf_bytes((kv("general.alignment", U32, u32(48)),)), HeaderError, "not a power of two"),
    "alignment as u64": (gguf_bytes((kv("general.alignment", 10, u64(32)),)), HeaderError, "must be a u32"),
    "alignment as bool": (gguf_bytes((kv("general.alignment", BOOL, b"\1"),)), HeaderError, "must be a u32"),
    "alignment as array": (
        gguf_bytes((kv("general.alignment", ARRAY, array(U32, 0)),)),
        HeaderError,
        "must be a u32",
    ),
    "alignment past the end": (
        gguf_bytes((kv("general.alignment", U32, u32(2**31)),), (TENSOR,)),
        TruncatedFile,
        "data ends at byte 2147483904",
    ),
    # tensor infos
    "name of 64 bytes": (gguf_bytes(tensors=(T("n" * 64),)), HeaderError, "exceeds 63 bytes"),
    "name not UTF-8": (gguf_bytes(tensors=(T(b"\xff"),)), HeaderError, "name of tensor 0 of 1 is not UTF-8"),
    "name twice": (gguf_bytes(tensors=(TENSOR, TENSOR)), DuplicateTensor, "occurs twice"),
    "5 dimensions": (gguf_bytes(tensors=(T("a.weight", (1,) * 5),)), HeaderError, "has 5 dimensions"),
    "2^32-1 dimensions": (gguf_bytes(tensors=(T("a.weight", n_dims=2**32 - 1),)), HeaderError, "at most 4"),
    "negative size": (gguf_bytes(tensors=(T("a.weight", (HUGE,)),)), HeaderError, "size 9223372036854775808"),
    "product over 2^63": (gguf_bytes(tensors=(T("a.weight", (2**32, 2**31)),)), HeaderError, "over 2^63-1"),
    "product wraps to 0": (gguf_bytes(tensors=(T("a.weight", (2**32, 2**32)),)), HeaderError, "over 2^63-1"),
    "bytes over 2^63": (gguf_bytes(tensors=(T("a.weight", (2**62,)),)), HeaderError, "over 2^63-1"),
    "empty with strides over 2^63": (
        gguf_bytes(tensors=(T("a.weight", (0, 2**40, 2**40)),)),
        HeaderError,
        "over 2^63-1",
    ),
    "type 43": (gguf_bytes(tensors=(T("a.weight", type=43),)), HeaderError, "unknown type id 43"),
    "type -1": (
        gguf_bytes(tensors=(T("a.weight", type=2**32 - 1),)),
        HeaderError,
        "unknown type id 4294967295",
    ),
    **{
        f"type {name}": (
            gguf_bytes(tensors=(T("a.weight", type=i),)),
            HeaderError,
            f"{name} ({i}), which ggml has",
        )
        for i, name in REMOVED.items()
    },
    "row of 33 in blocks of 32": (
        gguf_bytes(tensors=(T("a.weight", (33, 2), Q8_0),)),
        HeaderError,
        "no multiple",
    ),
    "row of 32 in blocks of 256": (
        gguf_bytes(tensors=(T("a.weight", (32,), Q4_K),)),
        HeaderError,
        "no multiple",
    ),
    "blocks without dimensions": (gguf_bytes(tensors=(T("a.weight", (), Q8_0),)), HeaderError, "no multiple"),
    # places
    "offset not aligned": (
        gguf_bytes(tensors=(T("a.weight", offset=4),)),
        OffsetError,
        "no multiple of the alignment",
    ),
    "offset past the end": (
        gguf_bytes(tensors=(T("a.weight", offset=2**40),)),
        OffsetError,
        "but the file has",
    ),
    "offset 2^64-32": (
        gguf_bytes(tensors=(T("a.weight", offset=2**64 - 32),)),
        OffsetError,
        "but the file has",
    ),
    "empty tensor outside": (
        gguf_bytes(tensors=(T("a.weight", (0,), offset=2**40),)),
        OffsetError,
        "but the file has",
    ),
    "same place": (
        gguf_bytes(tensors=(TENSOR, T("b", (64,), F32, offset=0))),
        OffsetError,
        "inside that of tensor 'a.weight'",
    ),
    "overlap by one block": (
        gguf_bytes(tensors=(T("b", (64,), F32, bytes(256)), T("c", (32,), F32, bytes(128), offset=224))),
        OffsetError,
        "inside that of tensor 'b'",
    ),
    "no data": (gguf_bytes(tensors=(T("a.weight", (32,)),)), TruncatedFile, "data ends at byte"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def lines_run(call: Callable[[], Any]) -> tuple[int, BaseException | None]:
    """How many lines of quantry_gguf `call` runs, and what it raises: time, counted instead of measured."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if "quantry_gguf" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except BaseException as e:
        return count, e
    finally:
        sys.settrace(before)
    return count, None


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_is_named_in_bounded_time_and_memory(path: Path, lie: str) -> None:
    raw, cls, sentence = LIES[lie]
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        lines, error = lines_run(lambda: open_gguf(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(error) is cls, error
    assert sentence in str(error)
    assert error.file == str(path)
    assert error.hint is None or error.hint.endswith((".", "?"))
    assert lines < 3000
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "lie", [k for k, (_, cls, _) in LIES.items() if cls is OffsetError or "product" in k]
)
def test_errors_about_a_tensor_name_it(path: Path, lie: str) -> None:
    path.write_bytes(LIES[lie][0])
    with pytest.raises(FormatError) as e:
        open_gguf(path)
    assert e.value.tensor in ("a.weight", "b", "c")
    assert e.value.offset is not None


def honest() -> bytes:
    """A small file with every kind of value and a few types of tensors."""
    blocks = bytes(range(34)) * 6
    values = (
        ARCH,
        kv("general.alignment", U32, u32(64)),
        kv("tokens", ARRAY, array(STRING, 3, text("a") + text("") + text("bc"))),
        kv("scores", ARRAY, array(FLOAT, 3, struct.pack("<3f", 1, 2, 3))),
        kv("flag", BOOL, b"\1"),
        kv("big", I64, u64(7)),
    )
    tensors = (
        T("token_embd.weight", (64, 3), Q8_0, blocks),
        T("empty.weight", (0, 4)),
        T("norm.weight", (16,), F32, bytes(64)),
        T("k.weight", (256,), Q4_K, bytes(144)),
    )
    return gguf_bytes(values, tensors, alignment=64)


def test_the_honest_file_is_accepted(path: Path) -> None:
    path.write_bytes(honest())
    read_everything(path)
    checkpoint = open_gguf(path)
    assert list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True)) == []


def test_every_truncation_is_an_error_of_the_file(path: Path) -> None:
    raw = honest()
    padding = -144 % 64  # behind the last tensor: its loss harms nobody, only strict verify says so
    for size in range(len(raw) - padding):
        path.write_bytes(raw[:size])
        with pytest.raises(FormatError) as e:
            open_gguf(path)
        assert isinstance(e.value, TruncatedFile) or size < 4
        assert e.value.file == str(path)
    path.write_bytes(raw[:-padding])
    checkpoint = open_gguf(path)
    problems = list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True))
    assert [(tensor, "missing" in p) for _, tensor, p in problems] == [("k.weight", True)]


def test_bytes_after_the_last_tensor_are_reported_by_strict_verify(path: Path) -> None:
    path.write_bytes(honest() + b"more")
    checkpoint = open_gguf(path)
    problems = list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True))
    assert problems == [(str(path), "", "4 bytes follow the last tensor")]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The honest file with a few bytes changed, cut out or put in."""
    raw = bytearray(honest())
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["byte", "word", "cut", "insert", "truncate"]))
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        if kind == "byte":
            raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "word":
            edges = st.sampled_from([0, 1, 2**30, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
            raw[at : at + 8] = u64(draw(edges | st.integers(0, 2**64 - 1)))
        elif kind == "cut":
            del raw[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            raw[at:at] = draw(st.binary(max_size=40))
        else:
            del raw[at:]
    return bytes(raw)


def only_our_errors(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        lines, error = lines_run(lambda: read_everything(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error is None or isinstance(error, QuantryError), repr(error)
    assert lines < 20_000
    assert peak < 4 << 20


@given(raw=mutations())
def test_mutations_raise_only_our_errors_in_bounded_time_and_memory(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    only_our_errors(tmp_path_factory.mktemp("mutated") / "m.gguf", raw)


@given(raw=st.binary(max_size=300))
def test_random_bytes_behind_the_magic_raise_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    only_our_errors(tmp_path_factory.mktemp("random") / "m.gguf", b"GGUF\3\0\0\0" + raw)


def test_a_thousand_mutations_of_single_bytes(path: Path) -> None:
    draw, raw = random.Random(0), honest()
    header = raw.index(b"k.weight") + 60
    for _ in range(1000):
        mutated = bytearray(raw)
        mutated[draw.randrange(header)] = draw.randrange(256)
        path.write_bytes(mutated)
        try:
            read_everything(path)
        except QuantryError as e:
            assert e.problem  # noqa: PT017 (any error of the tree is right, any other exception fails)

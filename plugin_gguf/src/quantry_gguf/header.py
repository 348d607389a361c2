"""The header of a GGUF file, versions 2 and 3, both byte orders. No length, count or offset is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Literal, NamedTuple

from quantry import DuplicateTensor, FormatError, HeaderError, OffsetError, TruncatedFile
from quantry_gguf.arrays import NumberArray, StringArray, end_of_strings
from quantry_gguf.types import BY_ID, REMOVED, GgmlType

__all__ = ["MAGIC", "Header", "TensorInfo", "padded", "parse_header"]

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
SHORT_ARRAY = 1024  # up to here an array becomes a plain list: per-layer values, tags, languages

# limits of llama.cpp, ggml/src/gguf.cpp and ggml.h
MAX_LENGTH = 2**30  # bytes of a string, elements of an array
MAX_INT64 = 2**63 - 1
MAX_DIMS = 4
MAX_NAME_BYTES = 63

MIN_KV_BYTES = 8 + 1 + 4 + 1  # key length, one byte of key, type, one byte of value
MIN_INFO_BYTES = 8 + 4 + 4 + 8  # name length, dimension count, type, offset

STRING, ARRAY = 8, 9
RECONVERT = "Convert or quantize the model again with a current llama.cpp."
REFETCH = "The download is incomplete or the header lies; fetch the file again."


class Scalar(NamedTuple):
    """A fixed-size value type: its name and its `struct` character."""

    name: str
    code: str


SCALARS = {
    0: Scalar("u8", "B"),
    1: Scalar("i8", "b"),
    2: Scalar("u16", "H"),
    3: Scalar("i16", "h"),
    4: Scalar("u32", "I"),
    5: Scalar("i32", "i"),
    6: Scalar("f32", "f"),
    7: Scalar("bool", "?"),
    10: Scalar("u64", "Q"),
    11: Scalar("i64", "q"),
    12: Scalar("f64", "d"),
}
_STRUCTS = {
    "little": {s.code: Struct("<" + s.code) for s in SCALARS.values()},
    "big": {s.code: Struct(">" + s.code) for s in SCALARS.values()},
}


class TensorInfo(NamedTuple):
    """One tensor: shape outermost dimension first (as torch), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its tensor data.

    values: key → plain Python value; arrays are lists up to 1,024 elements, else NumberArray or StringArray.
    kinds: key → ids of its value type and, for an array, of its elements' (else None).
    tensors: in file order, each inside the file, aligned, none overlapping another.
    header_bytes: up to the last tensor info. data_start: the same, padded.
    """

    version: int
    byteorder: Literal["little", "big"]
    alignment: int
    values: Mapping[str, Any]
    kinds: Mapping[str, tuple[int, int | None]]
    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    data_start: int


def parse_header(buffer: memoryview, file: Path) -> Header:
    """The header of the file whose bytes are `buffer`; `file` is for messages only.

    Takes time and memory proportional to the header. Raises TruncatedFile, HeaderError, OffsetError or
    DuplicateTensor.
    """
    if bytes(buffer[:4]) != MAGIC:
        raise HeaderError(f"begins with {bytes(buffer[:4])!r}, not with {MAGIC!r}", file=file, offset=0)
    cursor = _Cursor(buffer, file)
    version = _read_version(cursor)
    n_tensors = cursor.count("tensors", MIN_INFO_BYTES)
    n_kv = cursor.count("key-values", MIN_KV_BYTES)
    values, kinds = _read_values(cursor, n_kv)
    alignment = values.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    infos = _read_infos(cursor, n_tensors)
    data_start = padded(cursor.at, alignment) if infos else cursor.at
    tensors = tuple(info._replace(offset=data_start + info.offset) for info in infos)
    _check_places(tensors, data_start, alignment, len(buffer), file)
    return Header(version, cursor.byteorder, alignment, values, kinds, tensors, cursor.at, data_start)


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


class _Cursor:
    """A reading position. Every length is checked against the bytes left before it is used."""

    def __init__(self, buffer: memoryview, file: Path) -> None:
        self.buffer = buffer
        self.file = file
        self.at = len(MAGIC)
        self.byteorder: Literal["little", "big"] = "little"

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return len(self.buffer) - self.at

    def error(self, problem: str, at: int | None = None, hint: str | None = None) -> HeaderError:
        """A HeaderError at this position, or at `at`."""
        return HeaderError(problem, file=self.file, offset=self.at if at is None else at, hint=hint)

    def truncated(self, problem: str, at: int | None = None) -> TruncatedFile:
        """A TruncatedFile likewise."""
        return TruncatedFile(problem, file=self.file, offset=self.at if at is None else at, hint=REFETCH)

    def skip(self, size: int, what: str) -> int:
        """The position of the next `size` bytes, which are stepped over. Raises TruncatedFile."""
        if size > self.left:
            raise self.truncated(f"{what} takes {size} bytes, {self.left} are left")
        self.at += size
        return self.at - size

    def number(self, code: str, what: str) -> Any:
        """One number of the `struct` character `code`."""
        struct = _STRUCTS[self.byteorder][code]
        return struct.unpack_from(self.buffer, self.skip(struct.size, what))[0]

    def count(self, what: str, min_bytes: int) -> int:
        """A number of entries that the bytes left can hold, each of at least `min_bytes`."""
        start = self.at
        n: int = self.number("Q", f"the number of {what}")
        if n > MAX_INT64:
            raise self.error(f"declares {n} {what}, more than 2^63-1", at=start)
        if n * min_bytes > self.left:
            problem = (
                f"declares {n} {what}, which take at least {n * min_bytes} bytes, but {self.left} are left"
            )
            raise self.truncated(problem, start)
        return n

    def length(self, what: str) -> int:
        """A string's length or an array's count: at most 2^30."""
        start = self.at
        n: int = self.number("Q", f"the length of {what}")
        if n > MAX_LENGTH:
            raise self.error(f"{what} has a length of {n}; at most 2^30 is legal", at=start)
        return n

    def string(self, what: str) -> str:
        """A string, decoded strictly."""
        n = self.length(what)
        start = self.skip(n, what)
        raw = bytes(self.buffer[start : self.at])
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8: {raw[:32]!r}", at=start) from e

    def name(self, what: str) -> str:
        """A key or tensor name: a string without NUL, which C programs would cut there."""
        start = self.at
        name = self.string(what)
        if "\0" in name:
            raise self.error(f"{what} contains a NUL byte: {name[:32]!r}", at=start)
        return name


def _read_version(cursor: _Cursor) -> int:
    start = cursor.at
    version: int = cursor.number("I", "the version")
    if version and version & 0xFFFF == 0:  # a small number, written in the other byte order
        cursor.byteorder = "big"
        cursor.at = start
        version = cursor.number("I", "the version")
    if version == 1:
        raise cursor.error("version 1 is not supported", start, RECONVERT)
    if version not in (2, 3):
        raise cursor.error(f"version {version} is unknown; 2 and 3 can be read", start)
    return version


def _read_values(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int | None]]]:
    """The values, and what type each has."""
    values: dict[str, Any] = {}
    kinds: dict[str, tuple[int, int | None]] = {}
    for i in range(count):
        start = cursor.at
        key = cursor.name(f"key {i} of {count}")
        if not key:
            raise cursor.error(f"key {i} of {count} is empty", start)
        if key in values:
            raise cursor.error(f"key {_clip(key)} occurs twice", start)
        kind = cursor.number("I", f"the type of key {_clip(key)}")
        element = _read_element(cursor, key) if kind == ARRAY else None
        values[key] = _read_value(cursor, key, kind, element)
        kinds[key] = kind, element
        if key == ALIGNMENT_KEY:
            _check_alignment(cursor, kind, values[key])
    return values, kinds


def _read_value(cursor: _Cursor, key: str, kind: int, element: int | None) -> Any:
    if kind in SCALARS:
        return cursor.number(SCALARS[kind].code, f"the value of key {_clip(key)}")
    if kind == STRING:
        return cursor.string(f"the value of key {_clip(key)}")
    if element is not None:
        return _read_array(cursor, key, element)
    raise cursor.error(f"key {_clip(key)} has the unknown value type {kind}", cursor.at - 4)


def _read_element(cursor: _Cursor, key: str) -> int:
    """The type of an array's elements."""
    what = f"the array of key {_clip(key)}"
    kind: int = cursor.number("I", f"the element type of {what}")
    if kind == ARRAY:
        raise cursor.error(f"{what} holds arrays, which llama.cpp does not allow either", cursor.at - 4)
    if kind != STRING and kind not in SCALARS:
        raise cursor.error(f"{what} has the unknown element type {kind}", cursor.at - 4)
    return kind


def _read_array(cursor: _Cursor, key: str, kind: int) -> Any:
    what = f"the array of key {_clip(key)}"
    count = cursor.length(what)
    if kind == STRING:
        return _read_strings(cursor, key, count)
    code = SCALARS[kind].code
    start = cursor.skip(count * _STRUCTS[cursor.byteorder][code].size, what)
    numbers = NumberArray(cursor.buffer[start : cursor.at], code, cursor.byteorder)
    return numbers.tolist() if count <= SHORT_ARRAY else numbers


def _read_strings(cursor: _Cursor, key: str, count: int) -> list[str] | StringArray:
    start = cursor.at
    try:
        cursor.at = end_of_strings(cursor.buffer, start, count, cursor.byteorder)
    except IndexError as e:
        raise cursor.truncated(f"key {_clip(key)}: string {e} of {count} leaves the file", start) from e
    strings = StringArray(cursor.buffer[start : cursor.at], count, cursor.byteorder, key, cursor.file)
    if count > SHORT_ARRAY:
        return strings
    try:
        return strings.tolist()
    except HeaderError:  # byte-level vocabularies hold what is no UTF-8; the file is readable for all that
        return strings


def _check_alignment(cursor: _Cursor, kind: int, alignment: Any) -> None:
    if kind not in SCALARS or SCALARS[kind].name != "u32":
        raise cursor.error(f"{ALIGNMENT_KEY} must be a u32, its value type is {kind}")
    if alignment == 0 or alignment & (alignment - 1):
        raise cursor.error(f"{ALIGNMENT_KEY} is {alignment}, not a power of two")


def _read_infos(cursor: _Cursor, count: int) -> list[TensorInfo]:
    """The tensor infos with offsets as written, relative to the data section."""
    infos: dict[str, TensorInfo] = {}
    for i in range(count):
        start = cursor.at
        name = cursor.name(f"the name of tensor {i} of {count}")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise cursor.error(f"the name of tensor {i} exceeds {MAX_NAME_BYTES} bytes: {_clip(name)}", start)
        if name in infos:
            raise DuplicateTensor("occurs twice", file=cursor.file, tensor=name, offset=start)
        infos[name] = _read_info(cursor, name)
    return list(infos.values())


def _read_info(cursor: _Cursor, name: str) -> TensorInfo:
    def refuse(problem: str, hint: str | None = None) -> FormatError:
        return HeaderError(problem, file=cursor.file, tensor=name, offset=start, hint=hint)

    start = cursor.at
    n_dims = cursor.number("I", f"the dimension count of tensor {name!r}")
    if n_dims > MAX_DIMS:
        raise refuse(f"has {n_dims} dimensions; at most {MAX_DIMS} are legal")
    ne = [cursor.number("Q", f"the shape of tensor {name!r}") for _ in range(n_dims)]
    shape = tuple(reversed(ne))  # ne has the innermost dimension first
    elements = 1
    for n in ne:
        if n > MAX_INT64:
            raise refuse(f"has the size {n} in its shape; negative sizes are not legal")
        elements *= max(n, 1)  # an empty tensor's strides must be representable too
    type_id = cursor.number("I", f"the type of tensor {name!r}")
    ggml = BY_ID.get(type_id)
    if ggml is None:
        raise refuse(*_unknown_type(type_id))
    columns = ne[0] if ne else 1
    if columns % ggml.block:
        raise refuse(f"has rows of {columns} elements, no multiple of the {ggml.name} block of {ggml.block}")
    if elements > MAX_INT64 or elements // ggml.block * ggml.block_bytes > MAX_INT64:
        raise refuse(f"has the shape {list(shape)}, over 2^63-1 elements or bytes")
    nbytes = ggml.row_bytes(0 if 0 in shape else elements)
    return TensorInfo(name, shape, ggml, cursor.number("Q", f"the offset of tensor {name!r}"), nbytes)


def _unknown_type(type_id: int) -> tuple[str, str]:
    """The problem and what to do."""
    if type_id in REMOVED:
        return (
            f"has the type {REMOVED[type_id]} ({type_id}), which ggml has removed",
            RECONVERT,
        )
    return (
        f"has the unknown type id {type_id}",
        f"Known: {', '.join(f'{i} {t.name}' for i, t in BY_ID.items())}.",
    )


def _check_places(
    tensors: tuple[TensorInfo, ...], data_start: int, alignment: int, file_size: int, file: Path
) -> None:
    """Every tensor inside the file, aligned, none overlapping another. Gaps and any order are allowed."""
    packed = data_start
    for t in tensors:
        relative = t.offset - data_start
        if relative % alignment:
            problem = f"offset {relative} is no multiple of the alignment {alignment}"
            raise OffsetError(problem, file=file, tensor=t.name, offset=t.offset)
        if t.offset + t.nbytes > file_size:
            raise _outside(t, packed, file_size, file)
        packed = padded(packed + t.nbytes, alignment)
    end, before = data_start, ""
    for t in sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset):
        if t.offset < end:
            raise OffsetError(
                f"data begins at byte {t.offset}, inside that of tensor {before!r}, which ends at byte {end}",
                file=file,
                tensor=t.name,
                offset=t.offset,
            )
        end, before = t.offset + t.nbytes, t.name


def _outside(t: TensorInfo, packed: int, file_size: int, file: Path) -> FormatError:
    problem = f"data ends at byte {t.offset + t.nbytes} but the file has {file_size} bytes"
    if t.offset == packed:  # the header is consistent: bytes are missing
        return TruncatedFile(problem, file=file, tensor=t.name, offset=t.offset, hint=REFETCH)
    return OffsetError(
        problem, file=file, tensor=t.name, offset=t.offset, hint="The header lies; do not use it."
    )


def _clip(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "…")

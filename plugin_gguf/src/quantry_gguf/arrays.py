"""Metadata arrays as lazy sequences: a vocabulary of 262,144 tokens costs nothing until it is read."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct, error
from typing import Any, overload

from quantry import HeaderError

__all__ = ["NumberArray", "StringArray", "end_of_strings"]

LENGTH = {"little": Struct("<Q"), "big": Struct(">Q")}  # every string is preceded by its length in bytes


class NumberArray(Sequence[Any]):
    """Numbers or booleans over the mapped file; elements are plain Python values. `tolist()` reads all."""

    __slots__ = ("_values",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, raw: memoryview, code: str, byteorder: str) -> None:
        """raw: exactly the bytes of the elements. code: their `struct` character, `?` for booleans."""
        self._values: memoryview | array[Any]
        if byteorder == sys.byteorder or code in "bB?":
            self._values = raw.cast(code)  # type: ignore[call-overload]
        else:
            self._values = array(code, raw.tobytes())
            self._values.byteswap()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        found = self._values[index]
        return found.tolist() if isinstance(index, slice) else found

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.tolist())

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    def __repr__(self) -> str:
        return _summary(self)

    def encoded(self) -> bytes:
        """The elements as a little-endian file has them."""
        raw = self._values.tobytes()
        code = self._values.format if isinstance(self._values, memoryview) else self._values.typecode
        if sys.byteorder == "little" or code in "bB?":
            return raw
        swapped = array(code, raw)
        swapped.byteswap()
        return swapped.tobytes()

    def tolist(self) -> list[Any]:
        """All elements."""
        return self._values.tolist()


class StringArray(Sequence[str]):
    """Strings over the mapped file, decoded when asked for. `tolist()` decodes all: 0.1 s for 262,144.

    Decoding is strict: HeaderError names file, key and element. `raw(i)` gives the bytes, for vocabularies
    that hold more than UTF-8.
    """

    __slots__ = ("_byteorder", "_count", "_file", "_key", "_raw", "_starts")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, raw: memoryview, count: int, byteorder: str, key: str, file: Path) -> None:
        """raw: exactly the bytes of `count` strings with their lengths, as `end_of_strings` found them."""
        self._raw = raw
        self._count = count
        self._byteorder = byteorder
        self._key = key
        self._file = file
        self._starts: array[int] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        return self._decode(self.raw(index), index)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    def __repr__(self) -> str:
        return _summary(self)

    def raw(self, index: int) -> bytes:
        """The bytes of one string."""
        starts = self._index()
        if not -self._count <= index < self._count:
            raise IndexError(f"{self._key} has {self._count} strings, no element {index}")
        index %= self._count
        return bytes(self._raw[starts[index] + 8 : starts[index + 1]])

    def encoded(self) -> bytes:
        """The strings as a little-endian file has them, each behind its length; they need not be UTF-8."""
        if self._byteorder == "little":
            return bytes(self._raw)
        texts = (self.raw(i) for i in range(self._count))
        return b"".join(LENGTH["little"].pack(len(text)) + text for text in texts)

    def tolist(self) -> list[str]:
        """All strings."""
        data, length, at = bytes(self._raw), LENGTH[self._byteorder].unpack_from, 8
        strings: list[str] = []
        try:
            for _ in range(self._count):  # one pass without the index: it halves the time
                end = at + length(data, at - 8)[0]
                strings.append(data[at:end].decode())
                at = end + 8
        except UnicodeDecodeError:
            strings.append(self[len(strings)])  # raises, naming the element
        return strings

    def _index(self) -> array[int]:
        """Where each string's length field begins, and the end of the last string."""
        if self._starts is None:
            length, at, starts = LENGTH[self._byteorder].unpack_from, 0, array("Q")
            for _ in range(self._count):
                starts.append(at)
                at += 8 + length(self._raw, at)[0]
            starts.append(at)
            self._starts = starts
        return self._starts

    def _decode(self, raw: bytes, index: int) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise HeaderError(
                f"key {self._key!r}: string {index} is not UTF-8: {raw[:32]!r}", file=self._file
            ) from e


def end_of_strings(buffer: memoryview, at: int, count: int, byteorder: str) -> int:
    """The offset behind `count` strings from `at`. Raises IndexError(i) when string i leaves the buffer."""
    length, start = LENGTH[byteorder].unpack_from, at
    try:
        for _ in range(count):
            at += 8 + length(buffer, at)[0]
    except (error, OverflowError):
        at = len(buffer) + 1
    if at <= len(buffer):
        return at
    at = start
    for i in range(count):  # once more, slower: which string was it
        if at + 8 > len(buffer):
            raise IndexError(i)
        at += 8 + length(buffer, at)[0]
        if at > len(buffer):
            raise IndexError(i)
    raise AssertionError("unreachable: the first pass left the buffer")


def _equal(ours: Sequence[Any], other: object) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
        return False
    return len(ours) == len(other) and list(ours) == list(other)


def _summary(values: Sequence[Any]) -> str:
    return f"<{type(values).__name__} of {len(values)}>"

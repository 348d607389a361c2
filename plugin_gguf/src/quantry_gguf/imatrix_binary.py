"""Importance in binary files without a header: llama.cpp's older imatrix, and mistral.rs' `.cimatrix`.

    legacy      i32 entries | entries × (i32 bytes, name, i32 calls, i32 n, f32[n] = mean · calls)
                | optionally i32 chunks | optionally i32 bytes, name of the text
    .cimatrix   u64 entries | entries × (u64 bytes, name, u64 n, f32[n] = mean · calls)

Neither says how a stack of experts is divided: its [experts, K] numbers come as one vector.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from quantry import (
    BufferSpec,
    DuplicateTensor,
    HeaderError,
    Importance,
    ImportanceFormat,
    MappedFile,
    TruncatedFile,
    UsageError,
    write_whole,
)
from quantry_gguf.header import MAGIC
from quantry_gguf.imatrix import calls_of, checked, scaled

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cimatrix", "LegacyImatrix"]

REFETCH = "The file is cut, damaged or of another kind; fetch or collect it again."
_MAX_NAME = 1024  # bytes; module paths of real models have under 100


class LegacyImatrix(ImportanceFormat):
    """`.imatrix` and `.dat` files of llama-imatrix before its GGUF files; mistral.rs reads them too.

    Source: llama.cpp tools/imatrix/imatrix.cpp (`save_imatrix_legacy`), common/imatrix-loader.cpp.
    """

    name: ClassVar[str] = "imatrix"
    suffixes: ClassVar[tuple[str, ...]] = (".imatrix", ".dat")
    convention: ClassVar[str | None] = "gguf"

    def detect(self, path: Path, head: bytes) -> bool:
        """By its suffix, unless it is a GGUF file."""
        return path.suffix in self.suffixes and not head.startswith(MAGIC)

    def read(self, path: Path) -> Importance:
        """Values divided by the calls they were multiplied with. Raises FormatError naming the entry."""
        cursor = _Cursor(path)
        weights: dict[str, Tensor] = {}
        for i in range(cursor.entries("i", least=16)):
            name = cursor.name("i", i, weights)
            calls = cursor.number("i", f"calls of entry {i}")
            if calls < 0:
                raise cursor.error(f"says it is of {calls} calls", name)
            values = cursor.floats("i", name)
            weights[name] = values / calls if calls else values
        chunks, text = 0, ""
        if cursor.left:
            chunks = cursor.number("i", "number of chunks")
            if chunks < 0:
                raise cursor.error(f"{chunks} chunks are declared")
        if cursor.left:
            text = cursor.text("i", "name of the text").decode(errors="replace")
        cursor.end()
        return Importance(weights, chunks=chunks, datasets=(text,) if text else ())

    def write(self, path: Path, importance: Importance) -> None:
        """Sorted by name; a matrix that saw no token as importance 1, as llama-imatrix does."""
        parts = [_count("i", len(importance.weights), path)]
        for name, means in sorted(importance.weights.items()):
            calls = calls_of(importance, name)
            parts += [_text("i", name), struct.pack("<ii", calls, means.numel())]
            parts.append(_floats(scaled(means, calls, name, path)))
        text = importance.datasets[-1] if importance.datasets else ""
        parts.append(struct.pack("<i", importance.chunks) + _text("i", text))
        write_whole(path, b"".join(parts))


class Cimatrix(ImportanceFormat):
    """`.cimatrix` files of mistral.rs: names are module paths without `.weight`.

    Values are taken as they are, means multiplied with the number of calls: encoders compare columns of one
    weight, so only their ratios count. Source: mistralrs-quant/src/imatrix.rs.
    """

    name: ClassVar[str] = "cimatrix"
    suffixes: ClassVar[tuple[str, ...]] = (".cimatrix",)

    def detect(self, path: Path, head: bytes) -> bool:
        """By its suffix, as mistral.rs does."""
        return path.suffix in self.suffixes

    def read(self, path: Path) -> Importance:
        """The values as stored. Raises FormatError naming the entry."""
        cursor = _Cursor(path)
        weights: dict[str, Tensor] = {}
        for i in range(cursor.entries("Q", least=21)):
            name = cursor.name("Q", i, weights)
            weights[name] = cursor.floats("Q", name)
        cursor.end()
        return Importance(weights)

    def write(self, path: Path, importance: Importance) -> None:
        """Sorted by name; a matrix that saw no token as zeros, which mistral.rs quantizes without weights."""
        parts = [_count("Q", len(importance.weights), path)]
        for name, means in sorted(importance.weights.items()):
            values = scaled(means, calls_of(importance, name), name, path)
            seen = importance.counts.get(name)
            if seen is not None and means.dim() == 2:
                values = values * (seen.cpu().view(-1, 1) > 0)
            parts += [_text("Q", name.removesuffix(".weight")), struct.pack("<Q", means.numel())]
            parts.append(_floats(values))
        write_whole(path, b"".join(parts))


class _Cursor:
    """A reading position. Every count and length is checked against the bytes left before it is used."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self._file.size - self._at

    def error(self, problem: str, entry: str | None = None) -> HeaderError:
        """A HeaderError at this position."""
        return HeaderError(problem, file=self._file.path, tensor=entry, offset=self._at, hint=REFETCH)

    def number(self, code: str, what: str) -> int:
        """One integer of the `struct` character `code`."""
        size = struct.calcsize("<" + code)
        found: int = struct.unpack("<" + code, self._take(size, what))[0]
        return found

    def entries(self, code: str, least: int) -> int:
        """How many entries there are, each of at least so many bytes."""
        count = self.number(code, "number of entries")
        if count < 1:
            raise self.error(f"declares {count} entries")
        if count * least > self.left:
            raise self._cut(f"declares {count} entries, of at least {least} bytes each")
        return count

    def text(self, code: str, what: str) -> bytes:
        """A length and so many bytes."""
        size = self.number(code, f"length of the {what}")
        if size < 0:
            raise self.error(f"the {what} has {size} bytes")
        return self._take(size, what)

    def name(self, code: str, index: int, known: dict[str, Tensor]) -> str:
        """The name of an entry, that of none before it."""
        raw = self.text(code, f"name of entry {index}")
        try:
            name = raw.decode()
        except UnicodeDecodeError as e:
            raise self.error(f"the name of entry {index} is not UTF-8: {raw[:32]!r}") from e
        if not name or "\0" in name or len(raw) > _MAX_NAME:
            raise self.error(f"the name of entry {index} is impossible: {name[:32]!r}")
        if name in known:
            raise DuplicateTensor("occurs twice", file=self._file.path, tensor=name, offset=self._at)
        return name

    def floats(self, code: str, entry: str) -> Tensor:
        """A count and so many float32 numbers, none of them negative, NaN or Inf."""
        count = self.number(code, f"number of values of {entry!r}")
        if count < 1:
            raise self.error(f"has {count} values", entry)
        if 4 * count > self.left:
            raise self._cut(f"has {count} values, which take {4 * count} bytes", entry)
        values = self._file.copy(self._at, BufferSpec("f32", (count,)), entry)
        self._at += 4 * count
        return checked(values, entry, self._file.path)

    def end(self) -> None:
        """Raise HeaderError where bytes are left."""
        if self.left:
            raise self.error(f"{self.left} bytes follow the last entry")

    def _take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise self._cut(f"the {what} takes {size} bytes")
        self._at += size
        return self._file.read(self._at - size, size, what)

    def _cut(self, problem: str, entry: str | None = None) -> TruncatedFile:
        return TruncatedFile(
            f"{problem}, but {self.left} are left", file=self._file.path, tensor=entry, offset=self._at,
            hint=REFETCH,
        )  # fmt: skip


def _count(code: str, entries: int, path: Path) -> bytes:
    if not entries:
        raise UsageError("there is importance of no weight to write", file=path)
    return struct.pack("<" + code, entries)


def _text(code: str, text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<" + code, len(raw)) + raw


def _floats(values: Tensor) -> bytes:
    return bytes(values.numpy().tobytes())

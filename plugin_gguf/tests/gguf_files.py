"""GGUF files for tests: written honestly by hand, so that each field can be made to lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import gguf

from quantry import Checkpoint, Source
from quantry_gguf.reader import FORMATS

FORMAT = FORMATS[0]
F32, Q8_0, Q4_K = 0, 8, 12
U8, I8, U16, I16, U32, I32, FLOAT, BOOL, STRING, ARRAY, U64, I64, DOUBLE = range(13)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw) if length is None else length) + raw


def kv(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def array(kind: int, count: int, elements: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + elements


@dataclass
class T:
    """A tensor info; `ne` innermost first. offset None: packed."""

    name: str | bytes
    ne: tuple[int, ...] = (32,)
    type: int = F32
    data: bytes = b""
    offset: int | None = None
    n_dims: int | None = None


ARCH = kv("general.architecture", STRING, text("llama"))


def gguf_bytes(
    values: tuple[bytes, ...] = (ARCH,),
    tensors: tuple[T, ...] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_kv: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these key-values and tensors; the counts lie where they are given."""
    infos, data = b"", b""
    for t in tensors:
        offset = len(data) if t.offset is None else t.offset
        ne = b"".join(u64(n) for n in t.ne)
        infos += (
            text(t.name) + u32(len(t.ne) if t.n_dims is None else t.n_dims) + ne + u32(t.type) + u64(offset)
        )
        data += t.data + bytes(-len(t.data) % alignment)
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(values) if n_kv is None else n_kv)
    head += b"".join(values) + infos
    return head + bytes(-len(head) % alignment) + data if tensors else head


def finish(w: gguf.GGUFWriter) -> None:
    """Writes what the package's writer has collected."""
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint, without asking other plugins."""
    source = Source.open(path)
    detection = FORMAT.detect(source)
    assert detection is not None
    return Checkpoint(source, FORMAT, detection)


def read_everything(path: Path) -> None:
    """All that a user can make the reader do with a file."""
    checkpoint = open_gguf(path)
    for value in checkpoint.config.values():
        if hasattr(value, "tolist"):
            value.tolist()
    list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True))
    for name in checkpoint:
        checkpoint[name]

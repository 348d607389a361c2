"""Importance files for tests, written honestly by hand, so that each field can be made to lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf_files import finish


@dataclass
class Entry:
    """`values` are means; what a file holds is values · calls."""

    name: str | bytes
    values: Sequence[float]
    calls: int = 1
    n: int | None = None
    name_bytes: int | None = None

    @property
    def raw_name(self) -> bytes:
        return self.name.encode() if isinstance(self.name, str) else self.name

    @property
    def raw_values(self) -> bytes:
        scale = self.calls or 1
        return (np.asarray(self.values, "<f4") * np.float32(scale)).tobytes()


def legacy(entries: Sequence[Entry], *, n: int | None = None, tail: bytes = b"") -> bytes:
    """The bytes of a file of llama-imatrix before GGUF; tail: what follows the entries."""
    out = struct.pack("<i", len(entries) if n is None else n)
    for e in entries:
        size = len(e.raw_name) if e.name_bytes is None else e.name_bytes
        out += struct.pack("<i", size) + e.raw_name
        out += struct.pack("<ii", e.calls, len(e.values) if e.n is None else e.n) + e.raw_values
    return out + tail


def cimatrix(entries: Sequence[Entry], *, n: int | None = None, tail: bytes = b"") -> bytes:
    """The bytes of a file of mistral.rs."""
    out = struct.pack("<Q", len(entries) if n is None else n)
    for e in entries:
        size = len(e.raw_name) if e.name_bytes is None else e.name_bytes
        out += struct.pack("<Q", size) + e.raw_name
        out += struct.pack("<Q", len(e.values) if e.n is None else e.n) + e.raw_values
    return out + tail


def gguf_imatrix(path: Path, tensors: dict[str, np.ndarray], **values: object) -> Path:
    """A file of these tensors by the gguf package, whose `general.type` is imatrix unless told otherwise."""
    w = gguf.GGUFWriter(path, "")
    w.kv_data[0].pop("general.architecture", None)
    w.add_string("general.type", str(values.get("type", "imatrix")))
    w.add_array("imatrix.datasets", values.get("datasets", ["a.txt", "b.txt"]))  # type: ignore[arg-type]
    w.add_uint32("imatrix.chunk_count", int(values.get("chunks", 3)))  # type: ignore[call-overload]
    w.add_uint32("imatrix.chunk_size", int(values.get("tokens", 512)))  # type: ignore[call-overload]
    for name, tensor in tensors.items():
        w.add_tensor(name, tensor)
    finish(w)
    return path

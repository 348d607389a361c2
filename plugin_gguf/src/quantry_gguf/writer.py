"""GGUF files, header first: sizes follow from shapes, so every offset is known before any data."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quantry import DuplicateTensor, UsageError
from quantry_gguf.header import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME_BYTES, padded
from quantry_gguf.types import GgmlType
from quantry_gguf.values import Value, value_bytes

__all__ = ["FilePlan", "NewTensor", "plan_file"]

VERSION = 3


class NewTensor(NamedTuple):
    """A tensor to be written; shape outermost dimension first."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType

    @property
    def nbytes(self) -> int:
        """Of its data, without padding."""
        return self.type.row_bytes(math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class FilePlan:
    """head: everything before the data. offsets: of each tensor in the file. size: of the file, padding
    included; `holes` of its bytes are padding, zeros."""

    head: bytes
    offsets: Mapping[str, int]
    size: int
    holes: int


def plan_file(values: Mapping[str, Value], tensors: Sequence[NewTensor]) -> FilePlan:
    """A file of these key-values and tensors, in this order, as llama.cpp packs it: version 3, little-endian.

    Raises UsageError naming key or tensor for what the format cannot hold, DuplicateTensor.
    """
    alignment = _alignment(values)
    head = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values)))
    for key, value in values.items():
        head += _text(key) + value_bytes(key, value)
    starts: dict[str, int] = {}
    at = 0
    for tensor in tensors:
        if tensor.name in starts:
            raise DuplicateTensor("occurs twice", tensor=tensor.name)
        starts[tensor.name] = at
        head += _info(tensor, at)
        at += padded(tensor.nbytes, alignment)
    if tensors:
        head += bytes(-len(head) % alignment)
    offsets = {name: len(head) + start for name, start in starts.items()}
    return FilePlan(bytes(head), offsets, len(head) + at, at - sum(tensor.nbytes for tensor in tensors))


def _alignment(values: Mapping[str, Value]) -> int:
    value = values.get(ALIGNMENT_KEY)
    if value is None:
        return DEFAULT_ALIGNMENT
    size = value.content
    if not isinstance(size, int) or size < 1 or size & (size - 1):
        raise UsageError(f"key {ALIGNMENT_KEY!r} is {size!r}, not a power of two")
    return size


def _info(tensor: NewTensor, offset: int) -> bytes:
    name, shape = tensor.name, tensor.shape
    if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        problem = f"is no name that a GGUF file can hold: at most {MAX_NAME_BYTES} bytes, none of them 0"
        raise UsageError(problem, tensor=name)
    if len(shape) > MAX_DIMS:
        raise UsageError(f"has {len(shape)} dimensions, GGUF allows {MAX_DIMS}", tensor=name)
    ne = shape[::-1]
    return _text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, tensor.type.id, offset)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw

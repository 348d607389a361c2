"""The header of a safetensors file, parsed within bounds and checked against the file it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from quantry.dtypes import ITEM_BYTES, from_safetensors
from quantry.errors import DuplicateTensor, HeaderError, OffsetError, QuantryError, TruncatedFile
from quantry.layout import BufferSpec, Shape
from quantry.source import MappedFile

__all__ = ["MAX_HEADER_BYTES", "Header", "StoredTensor", "parse_header"]

MAX_HEADER_BYTES = 100_000_000  # as the safetensors package
_MAX_BYTES = 2**63 - 1
_HINT = "The file is damaged or not safetensors; fetch it again."


class StoredTensor(NamedTuple):
    """One entry: element type (a name of `quantry.dtypes`), shape, place in the file."""

    dtype: str
    shape: Shape
    offset: int
    nbytes: int

    @property
    def spec(self) -> BufferSpec:
        """Element type and shape."""
        return BufferSpec(self.dtype, self.shape)


class Header(NamedTuple):
    """Every tensor of one file, in file order, and the file's `__metadata__`."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def parse_header(mapped: MappedFile) -> Header:
    """Names, types, shapes and places of a file's tensors.

    Raises TruncatedFile, HeaderError, OffsetError or DuplicateTensor naming the file, and the tensor where
    one is to blame. Time and memory are bounded by the header's own size, at most 100 MB.
    """
    if mapped.size < 8:
        raise TruncatedFile(
            f"has {mapped.size} bytes; a safetensors file begins with 8", file=mapped.path, hint=_HINT
        )
    length = int.from_bytes(mapped.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            f"header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed",
            file=mapped.path,
            offset=0,
            hint=_HINT,
        )
    fields = _parse_json(mapped, mapped.read(8, length, "header"))
    metadata = _metadata(mapped, fields.pop("__metadata__", {}))
    data_start = 8 + length
    data_bytes = mapped.size - data_start
    tensors: dict[str, StoredTensor] = {}
    for name, field in fields.items():
        try:
            dtype, shape, start, end = _entry(field, data_bytes)
        except QuantryError as e:
            e.file, e.tensor = str(mapped.path), name
            raise
        tensors[name] = StoredTensor(dtype, shape, data_start + start, end - start)
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_contiguous(mapped, ordered, data_start)
    return Header(ordered, metadata)


def _parse_json(mapped: MappedFile, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DuplicateTensor("occurs twice in the header", file=mapped.path, tensor=key)
            found[key] = value
        return found

    if not text.startswith(b"{"):
        raise HeaderError("the header does not begin with '{'", file=mapped.path, offset=8, hint=_HINT)
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
        "".join(fields).encode()  # escapes can spell lone surrogates, which no file name or header can hold
    except (ValueError, RecursionError) as e:
        raise HeaderError(f"the header is not JSON: {e}", file=mapped.path, hint=_HINT) from e
    assert isinstance(fields, dict)  # it began with a brace
    return fields


def _no_constant(spelled: str) -> NoReturn:
    raise ValueError(f"{spelled} is not JSON")


def _metadata(mapped: MappedFile, field: Any) -> dict[str, str]:
    if not isinstance(field, dict) or not all(isinstance(value, str) for value in field.values()):
        raise HeaderError("`__metadata__` must map strings to strings", file=mapped.path)
    return field


def _entry(field: Any, data_bytes: int) -> tuple[str, Shape, int, int]:
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError("needs exactly dtype, shape and data_offsets")
    spelled, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    dtype = from_safetensors(spelled) if isinstance(spelled, str) else None
    if dtype is None:
        raise HeaderError(f"element type {str(spelled)[:40]!r} is unknown")
    if not _naturals(shape):
        raise HeaderError(f"shape {str(shape)[:80]} is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"data_offsets {str(offsets)[:80]} are not a begin and an end")
    nbytes = ITEM_BYTES[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > _MAX_BYTES:
            raise HeaderError(f"shape {str(shape)[:80]} overflows 64 bits")
    start, end = offsets
    if end > data_bytes:
        raise TruncatedFile(f"ends at data byte {end} but the file has {data_bytes}", hint=_HINT)
    if end - start != nbytes:
        raise HeaderError(f"{dtype} {shape} takes {nbytes} bytes, its data_offsets span {end - start}")
    return dtype, tuple(shape), start, end


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _check_contiguous(mapped: MappedFile, ordered: Mapping[str, StoredTensor], data_start: int) -> None:
    end = data_start
    for name, stored in ordered.items():
        if stored.offset != end:
            what = "overlaps the tensor before it" if stored.offset < end else "leaves a hole before it"
            raise OffsetError(what, file=mapped.path, tensor=name, offset=stored.offset)
        end += stored.nbytes
    if end != mapped.size:
        raise OffsetError(f"{mapped.size - end} bytes follow the last tensor", file=mapped.path, offset=end)

"""Faults that a reader tolerates: numbers that are not finite, departures from how llama.cpp packs a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantry import HeaderError, TensorEntry
from quantry_gguf.arrays import StringArray
from quantry_gguf.header import padded
from quantry_gguf.reader import Place, read_entry
from quantry_gguf.scales import check_scales
from quantry_gguf.split import Part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["container_problems", "value_problems"]

Problem = tuple[str, str, str]  # file, tensor, what is wrong
_STEP_BYTES = 32 << 20


def value_problems(entry: TensorEntry) -> Iterator[Problem]:
    """NaN or infinite numbers, the first of the tensor: scales of blocks, elements of plain floats."""
    place: Place = entry.place
    for rows in _steps(entry):
        qt, first = read_entry(entry, rows)
        problem = check_scales(qt, first)
        if problem is None and qt.layout.family == "dense":
            problem = _not_finite(qt.buffers["weight"], first)
        if problem is not None:
            yield str(place.file.path), entry.name, problem
            break
    place.file.drop(place.offset, entry.nbytes)


def container_problems(part: Part) -> Iterator[Problem]:
    """What llama.cpp refuses, or has never written: gaps, disorder, dirty padding, bytes after the end."""
    header, file = part.header, str(part.file.path)
    for value in header.values.values():
        if isinstance(value, StringArray):
            try:
                value.tolist()
            except HeaderError as e:
                yield file, "", e.problem
    if "general.architecture" not in header.values and header.values.get("split.no", 0) == 0:
        yield file, "", "key 'general.architecture' is missing"
    expected = header.data_start
    for info in header.tensors:
        if info.offset != expected:
            yield file, info.name, f"data begins at byte {info.offset}, packed order demands {expected}"
        expected = padded(info.offset + info.nbytes, header.alignment)
    yield from _padding_problems(part)


def _padding_problems(part: Part) -> Iterator[Problem]:
    """Bytes that belong to no tensor are zeros, and only the last tensor's padding follows it."""
    header, file = part.header, str(part.file.path)
    end, before = header.header_bytes, ""
    for info in sorted((t for t in header.tensors if t.nbytes), key=lambda t: t.offset):
        if not _all_zero(part, end, info.offset):
            yield file, before, f"the padding from byte {end} to {info.offset} is not zero"
        end, before = info.offset + info.nbytes, info.name
    stop = padded(end, header.alignment) if header.tensors else end
    if part.file.size < stop:
        yield file, before, f"the padding up to byte {stop} is missing, the file has {part.file.size} bytes"
    elif not _all_zero(part, end, stop):
        yield file, before, f"the padding from byte {end} to {stop} is not zero"
    if part.file.size > stop:
        yield file, "", f"{part.file.size - stop} bytes follow the last tensor"


def _all_zero(part: Part, start: int, stop: int) -> bool:
    for at in range(start, stop, _STEP_BYTES):
        piece = part.file.read(at, min(_STEP_BYTES, stop - at))
        if piece.count(0) != len(piece):
            return False
    return True


def _steps(entry: TensorEntry) -> Iterator[slice | None]:
    """Slices of dimension 0 of some 32 MB, None for all of a vector."""
    if len(entry.shape) < 2 or not entry.nbytes:
        yield None
        return
    count = max(1, _STEP_BYTES * entry.shape[0] // entry.nbytes)
    for start in range(0, entry.shape[0], count):
        yield slice(start, min(start + count, entry.shape[0]))


def _not_finite(weight: Tensor, first: int) -> str | None:
    if not weight.is_floating_point():
        return None
    bad = weight.isfinite().logical_not_()
    if not bad.any():
        return None
    *lead, last = bad.nonzero()[0].tolist() or [0]
    index = [lead[0] + first, *lead[1:], last] if lead else [last]
    return f"element {index} is NaN or infinite"

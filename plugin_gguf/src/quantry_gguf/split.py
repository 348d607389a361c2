"""The parts of a GGUF model: one file, or `PREFIX-00001-of-00003.gguf` and its siblings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantry import DuplicateTensor, FormatError, HeaderError, MappedFile, Source, UsageError
from quantry_gguf.header import Header, parse_header

__all__ = ["Part", "gguf_file", "open_parts"]

_NAME = re.compile(r"(?P<prefix>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf\Z", re.DOTALL)
MAX_PARTS = 65535  # split.count is a u16


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a model and what its header says."""

    file: MappedFile
    header: Header


def gguf_file(source: Source) -> str | None:
    """The file to open: the one the user named, or the only GGUF model of a folder (its first part).

    Raises UsageError when a folder holds several models.
    """
    if source.is_file:
        return source.files[0]
    models: dict[str, str] = {}
    for name in source.with_suffix(".gguf"):
        match = _NAME.match(name)
        models.setdefault(match["prefix"] if match else name, name)
    # a vision projector, or importance, lies beside the model it belongs to
    beside = ("mmproj", "imatrix")
    candidates = [name for name in models.values() if not name.startswith(beside)] or list(models.values())
    if len(candidates) > 1:
        raise UsageError(
            f"holds several GGUF models: {', '.join(candidates[:8])}",
            file=source.path,
            hint=f"Name one: {source.path / candidates[0]}",
        )
    return candidates[0] if candidates else None


def open_parts(source: Source, name: str) -> tuple[Part, ...]:
    """Every part of the model that `name` belongs to, in order; the first one has the model's key-values.

    Raises FormatError naming the part that is missing, misnumbered or repeats a tensor.
    """
    opened = _open(source, name)
    count = _integer(opened, "split.count", 1)
    if count == 1:
        return (opened,)
    match = _NAME.match(name)
    if match is None or int(match["count"]) != count or not 2 <= count <= MAX_PARTS:
        raise HeaderError(
            f"key 'split.count' is {count}, which the file's name contradicts",
            file=opened.file.path,
            hint=f"Part 1 of a split model is named PREFIX-00001-of-{max(count, 0):05}.gguf; rename it.",
        )
    parts = [_open_part(source, match["prefix"], no, count) for no in range(count)]
    _check_tensors(parts)
    return tuple(parts)


def _open(source: Source, name: str) -> Part:
    file = source.file(name)
    return Part(file, parse_header(file.buffer(), file.path))


def _open_part(source: Source, prefix: str, no: int, count: int) -> Part:
    name = f"{prefix}-{no + 1:05}-of-{count:05}.gguf"
    if source.sibling(name) is None:
        raise FormatError(
            f"part {no + 1} of {count} is missing",
            file=source.root / name,
            hint="Put all parts of the model into one folder.",
        )
    part = _open(source, name)
    for key, expected in (("split.no", no), ("split.count", count)):
        found = _integer(part, key, None)
        if found != expected:
            raise HeaderError(
                f"key {key!r} is {found}, expected {expected}",
                file=part.file.path,
                hint="It is not the part that its name says; fetch it again.",
            )
    return part


def _check_tensors(parts: list[Part]) -> None:
    seen: dict[str, Part] = {}
    for part in parts:
        for info in part.header.tensors:
            if info.name in seen:
                raise DuplicateTensor(
                    f"is also in {seen[info.name].file.path.name}", file=part.file.path, tensor=info.name
                )
            seen[info.name] = part
    declared = _integer(parts[0], "split.tensors.count", len(seen))
    if declared != len(seen):
        raise HeaderError(
            f"key 'split.tensors.count' is {declared}, but the {len(parts)} parts hold {len(seen)} tensors",
            file=parts[0].file.path,
            hint="A part belongs to another model, or is cut; fetch the parts again.",
        )


def _integer(part: Part, key: str, default: int | None) -> Any:
    values: Mapping[str, Any] = part.header.values
    found = values.get(key, default)
    if found is not default and (not isinstance(found, int) or isinstance(found, bool)):
        raise HeaderError(f"key {key!r} must be an integer", file=part.file.path)
    return found

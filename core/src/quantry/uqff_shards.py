"""Which `.uqff` files make one output, and what their headers hold together (mistral.rs, uqff-format.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantry.errors import DuplicateTensor, FormatError, HeaderError, UsageError
from quantry.safetensors_format import StoredIn
from quantry.safetensors_header import parse_header
from quantry.source import Source
from quantry.uqff_legacy import legacy_places
from quantry.uqff_report import read_report

__all__ = [
    "RESIDUAL",
    "VERSION",
    "VERSION_KEYS",
    "Entries",
    "outputs",
    "read_entries",
    "shards_of",
    "stem_of",
]

RESIDUAL = "residual.safetensors"
VERSION = (1, 2, 0)
VERSION_KEYS = ("uqff.version.major", "uqff.version.minor", "uqff.version.patch")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{1,18})\.uqff\Z")


@dataclass(frozen=True, slots=True)
class Entries:
    """Every entry of an output's shards but the version, and each shard's `__metadata__`."""

    shards: tuple[str, ...]
    places: Mapping[str, StoredIn]
    suffixes: Mapping[str, tuple[str, ...]]
    """Layer key → the names of its `weight` and `weight.*` entries."""
    metadata: Mapping[str, Mapping[str, str]]
    version: tuple[int, int, int]


def outputs(source: Source) -> dict[str, tuple[str, ...]]:
    """Output name → its shards, for every output in the source's folder, by the report or by file names."""
    report = read_report(source) or []
    found = {output.quant: output.shards for output in report}
    claimed = {shard for shards in found.values() for shard in shards}
    groups: dict[str, dict[int, str]] = {}
    for name in sorted(p.name for p in source.root.iterdir() if p.suffix == ".uqff" and p.is_file()):
        if name in claimed:
            continue
        match = _SHARD.match(name)
        stem, index = (match["stem"], int(match["index"])) if match else (name.removesuffix(".uqff"), 0)
        groups.setdefault(stem if match else name, {})[index] = name
    for stem, shards in groups.items():
        found.setdefault(stem, tuple(shards[index] for index in sorted(shards)))
    return found


def shards_of(source: Source) -> tuple[str, ...]:
    """The shards of the output that the source names.

    Raises FormatError naming a shard that is missing, UsageError when a folder holds several outputs.
    """
    found = outputs(source)
    if source.is_file:
        shards = next(
            (shards for shards in found.values() if source.path.name in shards), (source.path.name,)
        )
    elif len(found) == 1:
        (shards,) = found.values()
    else:
        rows = ", ".join(sorted(found))
        raise UsageError(
            f"holds several UQFF outputs: {rows}",
            file=source.path,
            hint=f"Name one of its files: {source.root / next(iter(found.values()))[0]}",
        )
    for shard in _expected(shards):
        if source.sibling(shard) is None:
            raise FormatError(
                f"shard {shard} is missing", file=source.root / shard, hint="Fetch the folder again."
            )
    return shards


def stem_of(name: str) -> str | None:
    """ "x" for `x-3.uqff`, None for a file of another name."""
    match = _SHARD.match(name)
    return None if match is None else match["stem"]


def read_entries(source: Source, shards: tuple[str, ...]) -> Entries:
    """The shards' headers as one, those of UQFF 0.x under the names of 1.x.

    Raises FormatError for duplicates, unreadable versions and blobs of 0.x that lie.
    """
    places: dict[str, StoredIn] = {}
    metadata: dict[str, Mapping[str, str]] = {}
    versions: dict[str, StoredIn] = {}
    for shard in shards:
        mapped = source.file(shard)
        header = parse_header(mapped)
        metadata[shard] = header.metadata
        for name, stored in header.tensors.items():
            here = StoredIn(mapped, stored)
            if name in VERSION_KEYS:
                if name in versions and _u32(versions[name], name) != _u32(here, name):
                    raise HeaderError(
                        f"contradicts {versions[name].mapped.path.name}", file=mapped.path, tensor=name
                    )
                versions[name] = here
            elif name in places:
                raise DuplicateTensor(
                    f"occurs in {places[name].mapped.path.name} too", file=mapped.path, tensor=name
                )
            else:
                places[name] = here
    first = source.root / shards[0]
    if places and not versions and all(name.isdecimal() for name in places):
        legacy, version = legacy_places(source, places)
        return Entries(shards, legacy, _by_layer(legacy), metadata, version)
    return Entries(shards, places, _by_layer(places), metadata, _version(versions, first))


def _by_layer(places: Mapping[str, StoredIn]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name in places:
        key, dot, _ = name.rpartition(".weight.")
        if not dot and name.endswith(".weight"):
            key = name.removesuffix(".weight")
        if key:
            found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def _version(versions: Mapping[str, StoredIn], first: Path) -> tuple[int, int, int]:
    missing = [key for key in VERSION_KEYS if key not in versions]
    if missing:
        raise HeaderError(f"has no version: {', '.join(missing)} missing", file=first)
    major, minor, patch = (_u32(versions[key], key) for key in VERSION_KEYS)
    known = f"this quantry reads {VERSION[0]}.0 to {VERSION[0]}.{VERSION[1]}"
    if major != VERSION[0] or minor > VERSION[1]:
        hint = "Upgrade quantry." if (major, minor) > VERSION[:2] else "Quantize the original model again."
        raise HeaderError(f"is UQFF {major}.{minor}.{patch}; {known}", file=first, hint=hint)
    return major, minor, patch


def _u32(place: StoredIn, name: str) -> int:
    if place.stored.dtype != "u32" or place.stored.shape != ():
        raise HeaderError(
            f"must be a u32 scalar, found {place.stored.dtype} {list(place.stored.shape)}",
            file=place.mapped.path,
            tensor=name,
        )
    return int.from_bytes(place.mapped.read(place.stored.offset, 4), "little")


def _expected(shards: tuple[str, ...]) -> list[str]:
    """The shards, and those that a gap in their numbers says are missing."""
    matches = [_SHARD.match(shard) for shard in shards]
    stems = {match["stem"] for match in matches if match}
    if len(stems) != 1 or not all(matches):
        return list(shards)
    (stem,) = stems
    present = {int(match["index"]) for match in matches if match}
    gap = next(i for i in range(len(present) + 1) if i not in present)
    return [*shards, f"{stem}-{gap}.uqff"] if gap < len(present) else list(shards)

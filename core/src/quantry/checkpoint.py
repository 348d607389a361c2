"""A checkpoint on disk as a mapping of names to packed tensors, read lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantry.errors import FormatError, QuantryError, UsageError, nearest
from quantry.format import Detection, Format, TensorEntry
from quantry.hints import dist_for_suffix
from quantry.source import Source
from quantry.tensor import QuantizedTensor

__all__ = ["Checkpoint", "open_checkpoint"]


class Checkpoint:
    """One model's weights. `ckpt[name]` is a QuantizedTensor whose buffers are views of the mapped file."""

    def __init__(self, source: Source, format: Format, detection: Detection) -> None:
        self.source = source
        self.format = format
        self.detection = detection
        self._entries: dict[str, TensorEntry] = {}
        for entry in format.entries(source, detection):
            if entry.name in self._entries:
                raise FormatError("occurs twice", file=source.path, tensor=entry.name)
            self._entries[entry.name] = entry

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.source.path)!r}, {self.format.name}, {len(self)} tensors)"

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's metadata: GGUF key-values, or `config.json`."""
        return self.format.config(self.source, self.detection)

    @property
    def architecture(self) -> str | None:
        """The architecture's name as the format states it."""
        return self.format.architecture(self.source, self.detection)

    def names(self) -> list[str]:
        """Tensor names as on disk, one per logical weight, in file order."""
        return list(self._entries)

    def entries(self) -> list[TensorEntry]:
        """Name, layout and shape of every weight, from headers alone."""
        return list(self._entries.values())

    def entry(self, name: str) -> TensorEntry:
        """The header of one weight. Raises UsageError naming the nearest existing name."""
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(
                f"has no tensor {name!r}", file=self.source.path, hint=nearest(name, self._entries)
            ) from None

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        """The packed weight, or only `rows` of its first dimension."""
        return self.format.load(self.entry(name), rows)

    def __getitem__(self, name: str) -> QuantizedTensor:
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def open_checkpoint(spec: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a file, folder or hub id with the format that recognises it best.

    Raises FormatError when none does (naming what was tried), when two are equally sure, or when the file is
    damaged.
    """
    from quantry.plugins import registry

    source = Source.open(spec, revision)
    found: list[tuple[Format, Detection]] = []
    broken: list[tuple[str, QuantryError]] = []
    raised: list[str] = []
    for format in registry().formats:
        try:
            detection = format.detect(source)
        except QuantryError as e:
            broken.append((format.name, e))
        except Exception as e:  # a stranger's detect() must not hide the formats that work
            raised.append(f"{format.name} raised {type(e).__name__}: {e}")
        else:
            if detection is not None:
                found.append((format, detection))
    if not found:
        if broken:
            raise broken[0][1]
        raise FormatError(
            f"no installed format recognises it (tried {', '.join(f.name for f in registry().formats)})",
            file=source.path,
            hint=_advice(source, raised),
        )
    best = max(detection.confidence for _, detection in found)
    winners = [(f, d) for f, d in found if d.confidence == best]
    if len(winners) > 1:
        rows = "; ".join(f"{f.name}: {d.why}" for f, d in winners)
        raise FormatError(f"several formats are equally sure: {rows}", file=source.path)
    return Checkpoint(source, *winners[0])


def _advice(source: Source, raised: list[str]) -> str:
    lines = list(raised)
    suffixes = {Path(name).suffix for name in source.files}
    for suffix in sorted(suffixes):
        if suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            lines.append(
                f"{suffix} files are pickles, which can run code: convert them to safetensors first."
            )
        elif (dist := dist_for_suffix(suffix)) is not None:
            lines.append(f"{suffix} files need a plugin: pip install {dist}")
    lines.append("`quantry plugins` lists what is installed.")
    return "\n".join(lines)

"""The checkpoint format `gguf`: llama.cpp's model files, as views of the mapped file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantry import (
    BufferSpec,
    Dense,
    Detection,
    Format,
    FormatError,
    HeaderError,
    Layout,
    MappedFile,
    QuantizedTensor,
    ShapeError,
    Source,
    TensorEntry,
    UsageError,
    torch_dtype,
)
from quantry_gguf.header import MAGIC
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.scales import check_scales, swap_blocks, swap_numbers
from quantry_gguf.split import Part, gguf_file, open_parts
from quantry_gguf.types import GgmlType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMATS", "GgufFormat", "Place", "read_entry"]

_LOOKUPS = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.", "attn_rel_b.")
_CONVOLUTIONS = ("conv", "patch_embd")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. swapped: its numbers are in the other byte order."""

    file: MappedFile
    offset: int
    type: GgmlType
    swapped: bool


class GgufFormat(Format):
    """GGUF versions 2 and 3, both byte orders, split files.

    `load` refuses NaN and infinite scales, which costs 0.1 s a GB; QUANTRY_TRUST_SCALES=1 leaves the scan out
    (`verify` still finds them). Big-endian files are read as ggml on a big-endian host, and gguf's own
    `gguf_convert_endian`, write them: wide numbers inside blocks are swapped too. `load` then returns copies.
    """

    name: ClassVar[str] = "gguf"
    own_names: ClassVar[bool] = True

    def detect(self, source: Source) -> Detection | None:
        """A file that begins with GGUF, or a folder of one such model; all its headers are parsed."""
        name = gguf_file(source)
        if name is None:
            return None
        file = source.file(name)
        start = file.read(0, min(len(MAGIC), file.size))
        if start != MAGIC:
            if name.endswith(".gguf"):
                raise _not_gguf(file, start)
            return None
        parts = open_parts(source, name)
        header = parts[0].header
        split = f", {len(parts)} parts" if len(parts) > 1 else ""
        why = f"{name} begins with GGUF: version {header.version}, {header.byteorder}-endian{split}"
        # a folder of another format may hold a GGUF file made from it, or importance for it
        return Detection(self.name, 100 if source.is_file else 40, why, {"parts": parts})

    def entries(self, source: Source, detection: Detection) -> Iterable[TensorEntry]:
        """Every tensor under its GGUF name, part by part; `ops` by llama.cpp's naming rules."""
        parts = _parts(detection)
        tied = all(info.name != "output.weight" for part in parts for info in part.header.tensors)
        return [
            TensorEntry(
                info.name,
                _layout(info.type),
                info.shape,
                _ops(info.name, info.shape, tied),
                Place(part.file, info.offset, info.type, part.header.byteorder != sys.byteorder),
            )
            for part in parts
            for info in part.header.tensors
        ]

    def load(self, entry: TensorEntry, rows: slice | None = None) -> QuantizedTensor:
        """A view of the mapped file; with `rows`, a copy of those rows.

        Raises FormatError at a NaN or infinite scale, ShapeError off a block.
        """
        qt, first = read_entry(entry, rows, copy=rows is not None)
        if os.environ.get("QUANTRY_TRUST_SCALES") != "1":
            problem = check_scales(qt, first)
            if problem is not None:
                raise FormatError(
                    problem,
                    file=entry.place.file.path,
                    tensor=entry.name,
                    hint="The data is damaged; fetch it again. QUANTRY_TRUST_SCALES=1 loads it nevertheless.",
                )
        return qt

    def config(self, source: Source, detection: Detection) -> Mapping[str, Any]:
        """The key-values of the first part. Long arrays are lazy sequences (`quantry_gguf.arrays`)."""
        return _parts(detection)[0].header.values

    def architecture(self, source: Source, detection: Detection) -> str | None:
        """`general.architecture`."""
        name = self.config(source, detection).get("general.architecture")
        return name if isinstance(name, str) else None

    def verify(
        self, source: Source, detection: Detection, strict: bool = False
    ) -> Iterable[tuple[str, str, str]]:
        """Numbers that are not finite; strict: also departures from llama.cpp's packing."""
        from quantry_gguf.verify import container_problems, value_problems

        for part in _parts(detection):
            if strict:
                yield from container_problems(part)
        for entry in self.entries(source, detection):
            yield from value_problems(entry)


FORMATS = [GgufFormat()]


def _parts(detection: Detection) -> tuple[Part, ...]:
    parts: tuple[Part, ...] = detection.facts["parts"]
    return parts


def _not_gguf(file: MappedFile, start: bytes) -> FormatError:
    if start == b"vers" and file.read(0, min(40, file.size)).startswith(b"version https://git-lfs"):
        hint = "It is a Git LFS pointer; run `git lfs pull`."
    else:
        hint = "It is not a GGUF file, or the download failed; fetch it again."
    return HeaderError(f"begins with {start!r}, not with {MAGIC!r}", file=file.path, offset=0, hint=hint)


def _layout(ggml: GgmlType) -> Layout:
    return Dense(ggml.name) if ggml.is_dense else GgmlBlocks(ggml.name)


def _ops(name: str, shape: tuple[int, ...], tied: bool) -> tuple[str, ...]:
    """What a runtime does with the tensor, by llama.cpp's names (gguf-py/gguf/tensor_mapping.py)."""
    if not name.endswith(".weight") or any(word in name for word in _CONVOLUTIONS) or "_norm." in name:
        return ()
    if len(shape) == 3:
        return ("experts",) if "_exps." in name else ()
    if len(shape) != 2:
        return ()
    if name == "token_embd.weight":
        return ("embedding", "linear") if tied else ("embedding",)
    return ("embedding",) if any(word in name for word in _LOOKUPS) else ("linear",)


def read_entry(entry: TensorEntry, rows: slice | None, copy: bool = False) -> tuple[QuantizedTensor, int]:
    """The tensor, or rows of it, unchecked; and the first row. copy: of its own memory, no page is mapped."""
    place: Place = entry.place
    start, stop = _bounds(entry, place.type, rows)
    shape = entry.shape if rows is None else (stop - start, *entry.shape[1:])
    skipped = entry.layout.nbytes((start, *entry.shape[1:])) if start else 0
    ((buffer, spec),) = entry.layout.buffers(shape).items()
    if not place.swapped:
        read = place.file.copy if copy else place.file.tensor
        data = read(place.offset + skipped, spec, entry.name)
    else:
        data = _read_swapped(place, place.offset + skipped, spec, entry.name)
    return QuantizedTensor(entry.layout, shape, {buffer: data}), start


def _bounds(entry: TensorEntry, ggml: GgmlType, rows: slice | None) -> tuple[int, int]:
    if rows is None:
        return 0, 0
    if not entry.shape:
        raise UsageError("is a single number and has no rows", file=entry.place.file.path, tensor=entry.name)
    start, stop, step = rows.indices(entry.shape[0])
    if step != 1:
        raise UsageError(
            f"rows can be read with step 1 only, not {step}", file=entry.place.file.path, tensor=entry.name
        )
    stop = max(start, stop)
    grain = ggml.block if len(entry.shape) == 1 else 1
    if start % grain or stop % grain:
        problem = f"{ggml.name} is cut at multiples of {grain} only, not at {start}:{stop}"
        raise ShapeError(problem, file=entry.place.file.path, tensor=entry.name)
    return start, stop


def _read_swapped(place: Place, offset: int, spec: BufferSpec, name: str) -> Tensor:
    raw = place.file.tensor(offset, BufferSpec("u8", (spec.nbytes,)), name)
    if not place.type.is_dense:
        return swap_blocks(place.type.name, raw).view(spec.shape)
    return swap_numbers(raw, place.type.block_bytes).view(torch_dtype(spec.dtype)).view(spec.shape)

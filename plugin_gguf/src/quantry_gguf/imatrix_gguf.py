"""Importance in llama.cpp's GGUF files: per weight the sums of squared inputs, and how many were summed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quantry import (
    BufferSpec,
    HeaderError,
    Importance,
    ImportanceFormat,
    MappedFile,
    PartFile,
    UsageError,
)
from quantry_gguf.header import MAGIC, Header, TensorInfo, parse_header
from quantry_gguf.imatrix import checked, scaled
from quantry_gguf.scales import swap_numbers
from quantry_gguf.types import BY_NAME
from quantry_gguf.values import typed_values
from quantry_gguf.writer import NewTensor, plan_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GgufImatrix"]

SUMS, COUNTS = ".in_sum2", ".counts"
TYPE_KEY, TYPE = "general.type", "imatrix"
_MAX_COUNT = 2.0**62  # tokens; int64 holds no more
DATASETS, CHUNKS, CHUNK_TOKENS = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


class GgufImatrix(ImportanceFormat):
    """`imatrix.gguf` of llama-imatrix: tensors `<weight>.in_sum2` [matrices, K] and `<weight>.counts`.

    A matrix that saw no token has importance 1 everywhere, as in llama-quantize. Source: llama.cpp
    tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp.
    """

    name: ClassVar[str] = "gguf-imatrix"
    suffixes: ClassVar[tuple[str, ...]] = (".gguf",)
    convention: ClassVar[str | None] = "gguf"

    def detect(self, path: Path, head: bytes) -> bool:
        """By its magic, whatever its suffix."""
        return head.startswith(MAGIC)

    def read(self, path: Path) -> Importance:
        """Means of squares. Raises HeaderError for a model file and for sums that have no counts."""
        file = MappedFile(path)
        header = parse_header(file.buffer(), path)
        if header.values.get(TYPE_KEY) != TYPE:
            raise HeaderError(
                f"key {TYPE_KEY!r} is {header.values.get(TYPE_KEY)!r}, not {TYPE!r}", file=path,
                hint="It is a model, not importance. `quantry imatrix` and llama-imatrix collect it.",
            )  # fmt: skip
        sums, counts = _halves(header, SUMS), _halves(header, COUNTS)
        for name in sorted(sums.keys() ^ counts.keys()):
            lacking = COUNTS if name in sums else SUMS
            raise HeaderError(f"there is no {name + lacking!r} beside it", file=path, tensor=name)
        if not sums:
            raise HeaderError("holds importance of no weight", file=path)
        weights: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        for name, info in sums.items():
            weights[name], seen[name] = _means(file, header, name, info, counts[name])
        return Importance(weights, seen, *_text_facts(header, path))

    def write(self, path: Path, importance: Importance) -> None:
        """Sums and counts, sorted by name. Means of unknown count are written as of the text's tokens."""
        if not importance.weights:
            raise UsageError("there is importance of no weight to write", file=path)
        tokens = max(1, importance.chunks * importance.chunk_tokens)
        tensors: dict[str, Tensor] = {}
        for name, means in sorted(importance.weights.items()):
            rows = means.reshape(-1, means.shape[-1])
            counts = _counts(importance, name, len(rows), tokens)
            tensors[name + SUMS] = scaled(rows, counts, name, path)
            tensors[name + COUNTS] = counts
        values = typed_values({
            TYPE_KEY: TYPE, DATASETS: list(importance.datasets) or [""], CHUNKS: importance.chunks,
            CHUNK_TOKENS: importance.chunk_tokens,
        })  # fmt: skip
        plan = plan_file(values, [NewTensor(n, tuple(t.shape), BY_NAME["f32"]) for n, t in tensors.items()])
        with PartFile(path, plan.size, plan.holes) as out:
            out.write(plan.head, 0)
            for name, tensor in tensors.items():
                out.write(tensor.contiguous().numpy().tobytes(), plan.offsets[name])


def _halves(header: Header, suffix: str) -> dict[str, TensorInfo]:
    """Weight name → its tensor of this suffix."""
    return {t.name.removesuffix(suffix): t for t in header.tensors if t.name.endswith(suffix)}


def _means(
    file: MappedFile, header: Header, name: str, sums: TensorInfo, counts: TensorInfo
) -> tuple[Tensor, Tensor]:
    """float32 [K] or [matrices, K], and int64 counts [matrices]."""
    import torch

    for info in (sums, counts):
        if info.type.name != "f32":
            raise HeaderError(f"is {info.type.name}, not f32", file=file.path, tensor=info.name)
    matrices, columns = counts.nbytes // 4, sums.shape[-1] if sums.shape else 1
    if not matrices or not columns or sums.nbytes != 4 * matrices * columns:
        raise HeaderError(
            f"has shape {list(sums.shape)}, and {matrices} counts: one for each row is needed",
            file=file.path, tensor=sums.name,
        )  # fmt: skip
    total = _floats(file, header, sums).view(matrices, columns)
    count = _floats(file, header, counts).round()
    if float(count.max()) >= _MAX_COUNT:
        raise HeaderError(f"counts {float(count.max())} tokens", file=file.path, tensor=counts.name)
    seen = count.view(-1, 1) > 0
    means = torch.where(seen, total / count.view(-1, 1), 1.0)
    return means.view(-1) if matrices == 1 else means, count.to(torch.int64)


def _floats(file: MappedFile, header: Header, info: TensorInfo) -> Tensor:
    """The numbers of a tensor, flat."""
    import torch

    raw = file.copy(info.offset, BufferSpec("u8", (info.nbytes,)), info.name)
    if header.byteorder != sys.byteorder:
        raw = swap_numbers(raw, 4)
    return checked(raw.view(torch.float32), info.name, file.path)


def _counts(importance: Importance, name: str, matrices: int, tokens: int) -> Tensor:
    """float32 [matrices, 1]."""
    import torch

    counts = importance.counts.get(name)
    if counts is None:
        return torch.full((matrices, 1), float(tokens))
    if counts.numel() != matrices:
        raise UsageError(f"{counts.numel()} counts are given for {matrices} matrices", tensor=name)
    return counts.detach().cpu().float().reshape(-1, 1)


def _text_facts(header: Header, path: Path) -> tuple[int, int, tuple[str, ...]]:
    """Chunks, tokens a chunk, names of the texts."""
    values: Mapping[str, Any] = header.values
    numbers = [values.get(key, 0) for key in (CHUNKS, CHUNK_TOKENS)]
    for key, number in zip((CHUNKS, CHUNK_TOKENS), numbers, strict=True):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise HeaderError(f"key {key!r} is {number!r}, not a count", file=path)
    texts = values.get(DATASETS, [])
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise HeaderError(f"key {DATASETS!r} is no list of texts", file=path)
    return numbers[0], numbers[1], tuple(text for text in texts if text)

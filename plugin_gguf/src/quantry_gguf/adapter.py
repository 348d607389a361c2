"""LoRA adapters in GGUF files, as llama.cpp's convert_lora_to_gguf.py writes them."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from quantry import (
    Adapter,
    AdapterFormat,
    Dense,
    FormatError,
    HeaderError,
    LowRank,
    MappedFile,
    TensorEntry,
    UsageError,
)
from quantry_gguf.header import MAGIC, Header, TensorInfo, parse_header
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.reader import Place, read_entry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GgufLora"]

TYPE, KIND, ALPHA = "general.type", "adapter.type", "adapter.lora.alpha"
ACTIVATED = "adapter.alora.invocation_tokens"
A, B = ".lora_a", ".lora_b"
NORM = "_norm.weight"
TABLE = "token_embd.weight"


class GgufLora(AdapterFormat):
    """`<weight>.lora_a` [r, in] and `<weight>.lora_b` [out, r], dense or packed, times alpha / r.

    The halves of `token_embd.weight` are [rows, r] and [width, r]. Packed halves are unpacked, being
    small. Norms, which a fine-tune may add, are left out with a warning, as llama.cpp leaves them out.
    Source: llama.cpp src/llama-adapter.cpp, llama_adapter_lora_init_impl and get_scale.
    """

    name: ClassVar[str] = "gguf-lora"

    def why_not(self, path: Path) -> str | None:
        """None for a file that begins with GGUF."""
        if not path.is_file():
            return "is a folder"
        with path.open("rb") as f:
            start = f.read(len(MAGIC))
        return None if start == MAGIC else f"begins with {start!r}, not with {MAGIC!r}"

    def read(self, path: Path) -> Adapter:
        """Names and architecture are GGUF's."""
        file = MappedFile(path)
        header = parse_header(file.buffer(), path)
        _check_kind(header, path)
        pairs = _pairs(header, path)
        alpha = _alpha(header, path)
        parts = {name: _part(name, file, header, *halves, alpha) for name, halves in pairs.items()}
        architecture = header.values.get("general.architecture")
        if not isinstance(architecture, str):
            raise HeaderError("names no architecture (key 'general.architecture')", file=path)
        return Adapter(path, parts, "gguf", architecture)


def _check_kind(header: Header, path: Path) -> None:
    values = header.values
    if values.get(TYPE) != "adapter":
        found = values.get(TYPE, "model")
        raise UsageError(f"is a GGUF file of type {found!r}, not an adapter", file=path)
    if values.get(KIND) != "lora":
        raise UsageError(f"is an adapter of type {values.get(KIND)!r}; only lora can be read", file=path)
    if values.get(ACTIVATED):
        raise UsageError("is an activated LoRA, at work behind certain tokens only", file=path)
    if values.get("split.count", 1) not in (0, 1):
        raise UsageError("is a part of a split file", file=path, hint="Merge it with llama-gguf-split.")


def _pairs(header: Header, path: Path) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Weight → its halves, in file order."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    norms = 0
    for info in header.tensors:
        name, suffix = info.name[: -len(A)], info.name[-len(A) :]
        if suffix in (A, B):
            halves.setdefault(name, {})[suffix] = info
        elif info.name.endswith(NORM):
            norms += 1
        else:
            raise FormatError(f"ends neither in {A} nor in {B}", file=path, tensor=info.name)
    for name, found in halves.items():
        for suffix in (A, B):
            if suffix not in found:
                raise FormatError("is missing, its other half is there", file=path, tensor=name + suffix)
    if not halves:
        raise FormatError("changes no weight", file=path)
    if norms:
        warnings.warn(f"{path}: its {norms} norm weights are left out, as in llama.cpp", stacklevel=4)
    return {name: (found[A], found[B]) for name, found in halves.items()}


def _alpha(header: Header, path: Path) -> float:
    alpha = header.values.get(ALPHA, 0.0)
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise HeaderError(f"key {ALPHA!r} is {alpha!r}, not a number", file=path)
    return float(alpha)


def _part(name: str, file: MappedFile, header: Header, a: TensorInfo, b: TensorInfo, alpha: float) -> LowRank:
    first, second = (_floats(file, header, info) for info in (a, b))
    if (
        name.endswith(TABLE) and second.dim() == 2
    ):  # rows of a are looked up, b [width, r] turns them into rows of the table
        change, names = LowRank(second.mT, first, 1.0), (b.name, a.name)
    else:
        change, names = LowRank(first, second, 1.0), (a.name, b.name)
    change = change.check(file.path, names)
    return change._replace(scale=alpha / change.rank) if alpha else change


def _floats(file: MappedFile, header: Header, info: TensorInfo) -> Tensor:
    import torch

    layout = Dense(info.type.name) if info.type.is_dense else GgmlBlocks(info.type.name)
    place = Place(file, info.offset, info.type, header.byteorder != sys.byteorder)
    qt, _ = read_entry(TensorEntry(info.name, layout, info.shape, (), place), None)
    return qt.buffers["weight"] if info.type.is_dense else qt.dequantize(torch.float32)

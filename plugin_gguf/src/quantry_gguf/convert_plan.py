"""Plan a GGUF file: the type, quantizer, importance and place of each tensor, before any data is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import quantry
from quantry import Importance, Quantizer, TensorEntry, UsageError, canonical_name
from quantry_gguf.convert_source import ConvertSource, present, stored_type
from quantry_gguf.mixes import needs_importance
from quantry_gguf.tensor_types import TypeOptions, choose_types, model_of, visit_order
from quantry_gguf.types import GgmlType
from quantry_gguf.values import Value, typed_values
from quantry_gguf.writer import FilePlan, NewTensor, plan_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ConvertPlan", "Fallback", "PlannedTensor", "plan_conversion"]

QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION
_CHECKED = ("f32", "f16", "bf16")  # copied through a cast, which refuses NaN and Inf
_IMATRIX = "quantize.imatrix."
_OWN_QUANTIZERS = {"mxfp4": "ggml_mxfp4", "nvfp4": "ggml_nvfp4"}  # the plain names are other layouts


class PlannedTensor(NamedTuple):
    """A tensor of the source and what it becomes; quantizer None: its bytes are copied."""

    entry: TensorEntry
    type: GgmlType
    quantizer: Quantizer | None
    importance: Tensor | None


class Fallback(NamedTuple):
    """A tensor whose shape forbade its type, what it is instead, and the sentence that says why."""

    tensor: str
    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConvertPlan:
    """Tensors in file order; header, offsets and size of the file."""

    tensors: Sequence[PlannedTensor]
    file: FilePlan
    fallbacks: Sequence[Fallback]

    @property
    def types(self) -> dict[str, int]:
        """Type → tensors, in the order in which files have them."""
        return dict(Counter(t.type.name for t in self.tensors))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of all tensors, over their weights."""
        count = sum(math.prod(t.entry.shape) for t in self.tensors)
        data = sum(t.type.row_bytes(math.prod(t.entry.shape)) for t in self.tensors)
        return 8 * data / count if count else 0.0


def plan_conversion(
    source: ConvertSource,
    options: TypeOptions,
    importance: Importance | None = None,
    *,
    imatrix: str | None = None,
    requantize: bool = False,
) -> ConvertPlan:
    """What the file will hold. imatrix: the file's name, for the record in the metadata.

    Raises UsageError naming the tensor that is packed already, that needs an importance that is missing, or
    an importance that belongs to no tensor or has another shape.
    """
    entries = {entry.name: entry for entry in source.weights.entries()}
    columns = {} if importance is None else importance_of(importance, entries, source.names)
    presents = {name: present(entry, source.own) for name, entry in entries.items()}
    values = {key: value.content for key, value in source.values.items()}
    model = model_of(values, entries, bool(columns))
    chosen = choose_types(list(presents.values()), model, options)
    planned = []
    for name in visit_order(entries):
        type, weights = chosen[name].type, columns.get(name)
        _check_packed(entries[name], type, requantize)
        if columns and weights is None and presents[name].type != type.name:
            _check_needless(name, type, options)
        planned.append(_planned(entries[name], type, weights))
    new = [NewTensor(t.entry.name, t.entry.shape, t.type) for t in planned]
    file = plan_file(_metadata(source.values, options, importance, imatrix), new)
    fallbacks = [Fallback(n, c.type.name, c.fallback) for n, c in chosen.items() if c.fallback is not None]
    return ConvertPlan(planned, file, fallbacks)


def importance_of(
    importance: Importance,
    entries: Mapping[str, TensorEntry],
    names: Callable[[], Mapping[str, str]],
) -> dict[str, Tensor]:
    """Importance by GGUF name, float32 [K] or [experts, K].

    Raises UsageError for a name that the model lacks and for another number of columns.
    """
    found = quantry.importance_by_weight(importance.weights, entries, names)
    return {name: _shaped(values, entries[name]) for name, values in found.items()}


def _shaped(values: Tensor, entry: TensorEntry) -> Tensor:
    import torch

    columns, matrices = entry.shape[-1], math.prod(entry.shape[:-2])
    if values.numel() == columns:
        return values.reshape(columns)
    if len(entry.shape) > 2 and values.numel() == matrices * columns:
        rows = values.reshape(matrices, columns)
        # flat files may store an expert that saw no token as zeros, which no encoder can weigh by
        return torch.where(rows.sum(-1, keepdim=True) > 0, rows, 1.0)
    raise UsageError(
        f"importance has shape {list(values.shape)}, the weight {list(entry.shape)}", tensor=entry.name,
        hint="The file belongs to another model.",
    )  # fmt: skip


def _check_packed(entry: TensorEntry, type: GgmlType, requantize: bool) -> None:
    if entry.layout.family == "dense" or requantize or stored_type(entry.layout) == type.name:
        return
    raise UsageError(
        f"is {entry.layout} already and would become {type.name}", tensor=entry.name,
        hint="Start from the model before it was quantized; --requantize permits to lose precision twice.",
    )  # fmt: skip


def _check_needless(name: str, type: GgmlType, options: TypeOptions) -> None:
    """Raise UsageError for a tensor without importance that would be useless so."""
    if needs_importance(name, type.name, options.file):
        raise _lacks_importance(name, type)


def _lacks_importance(name: str, type: GgmlType) -> UsageError:
    return UsageError(
        f"would be {type.name}, which needs importance, and there is none for it", tensor=name,
        hint="Collect it with this tensor included, or give it another type: --tensor-type.",
    )  # fmt: skip


def _planned(entry: TensorEntry, type: GgmlType, importance: Tensor | None) -> PlannedTensor:
    if stored_type(entry.layout) == type.name and type.name not in _CHECKED:
        return PlannedTensor(entry, type, None, None)
    key = canonical_name(_OWN_QUANTIZERS.get(type.name, type.name))
    quantizer = quantry.registry().quantizers[key]
    if quantizer.needs == "importance" and importance is None:
        raise _lacks_importance(entry.name, type)
    return PlannedTensor(entry, type, quantizer, importance if quantizer.takes_importance else None)


def _metadata(
    values: Mapping[str, Value], options: TypeOptions, importance: Importance | None, imatrix: str | None
) -> dict[str, Value]:
    """The source's key-values, and those that say how it was quantized, last."""
    made = {"general.quantization_version": QUANTIZATION_VERSION, "general.file_type": options.file.id}
    facts: dict[str, object] = dict(made)
    if importance is not None:
        facts[f"{_IMATRIX}file"] = Path(imatrix or "").name
        if importance.datasets:
            facts[f"{_IMATRIX}dataset"] = importance.datasets[0]
        facts[f"{_IMATRIX}entries_count"] = len(importance.weights)
        if importance.chunks:
            facts[f"{_IMATRIX}chunks_count"] = importance.chunks
    return {key: value for key, value in values.items() if key not in facts} | typed_values(facts)

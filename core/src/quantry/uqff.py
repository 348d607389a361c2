"""UQFF checkpoints: packed layers in shards, the rest in `residual.safetensors` (mistral.rs,
uqff-format.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quantry.errors import DuplicateTensor
from quantry.format import Detection, Format, TensorEntry
from quantry.layouts.dense import Dense
from quantry.roles import ops_of
from quantry.safetensors_format import (
    StoredIn,
    architecture_of,
    dense_entry,
    load_dense,
    read_config,
    row_range,
)
from quantry.safetensors_header import parse_header
from quantry.source import Source
from quantry.tensor import QuantizedTensor
from quantry.uqff_layer import Layer, layer_keys, read_layer, tensor_of
from quantry.uqff_shards import RESIDUAL, read_entries, shards_of
from quantry.uqff_verify import problems_of

__all__ = ["RESIDUAL", "UqffFormat"]


class UqffFormat(Format):
    """A `.uqff` file with its sibling shards, or a folder that holds one output."""

    name = "uqff"

    def detect(self, source: Source) -> Detection | None:
        """Any source with `.uqff` files; unsure for a folder that holds other weights too."""
        shards = source.with_suffix(".uqff")
        if not shards:
            return None
        others = [name for name in source.with_suffix(".safetensors") if name != RESIDUAL]
        if others and not source.is_file:
            return Detection(self.name, 40, f"{len(shards)} .uqff files beside {others[0]}")
        return Detection(self.name, 95, f"{len(shards)} .uqff files" if len(shards) > 1 else shards[0])

    def entries(self, source: Source, detection: Detection) -> Iterable[TensorEntry]:
        """Every layer's weight and bias by key, then the residual tensors."""
        tied = bool(read_config(source).get("tie_word_embeddings"))
        stored = read_entries(source, shards_of(source))
        seen: set[str] = set()
        for layer in (read_layer(stored, key) for key in layer_keys(stored)):
            for entry in _layer_entries(layer, tied):
                seen.add(entry.name)
                yield entry
        if source.sibling(RESIDUAL) is None:
            return
        mapped = source.file(RESIDUAL)
        for name, place in parse_header(mapped).tensors.items():
            if name in seen:
                raise DuplicateTensor("is a layer of the shards too", file=mapped.path, tensor=name)
            yield dense_entry(name, mapped, place, tied)

    def load(self, entry: TensorEntry, rows: slice | None = None) -> QuantizedTensor:
        """Views of the mapped shards; with `rows`, copies of those rows."""
        if isinstance(entry.place, Layer):
            return _load_layer(entry, entry.place, rows)
        place: StoredIn = entry.place
        if place.stored.dtype.startswith("f8"):
            return _load_f8_bias(entry, place, rows)
        return load_dense(entry, place.mapped, place.stored, rows)

    def config(self, source: Source, detection: Detection) -> Mapping[str, Any]:
        """`config.json`, {} without one."""
        return read_config(source)

    def architecture(self, source: Source, detection: Detection) -> str | None:
        """As the source checkpoint stated it."""
        return architecture_of(read_config(source))

    def verify(
        self, source: Source, detection: Detection, strict: bool = False
    ) -> Iterable[tuple[str, str, str]]:
        """Faulty layers, surplus entries, a wrong report; strict: what mistral.rs' `--strict` rejects."""
        return problems_of(source, strict)


def _layer_entries(layer: Layer, tied: bool) -> Iterator[TensorEntry]:
    name = f"{layer.key}.weight"
    yield TensorEntry(name, layer.layout, layer.shape, ops_of(name, layer.shape, tied), layer)
    if layer.bias is not None:
        stored = layer.bias.stored
        layout = Dense("bf16" if stored.dtype.startswith("f8") else stored.dtype)
        yield TensorEntry(f"{layer.key}.bias", layout, stored.shape, (), layer.bias)


def _load_layer(entry: TensorEntry, layer: Layer, rows: slice | None) -> QuantizedTensor:
    parts = {suffix: tensor_of(place) for suffix, place in layer.parts.items() if suffix != ".format"}
    qt = layer.codec.decode(parts, layer.layout, layer.shape)
    if rows is None:
        return qt
    start, count = row_range(entry, rows)
    cut = qt.narrow(0, start, count)
    owned = QuantizedTensor(
        cut.layout, cut.shape, {name: buffer.clone() for name, buffer in cut.buffers.items()}
    )
    place = layer.parts[""]
    place.mapped.drop(place.stored.offset, place.stored.nbytes)
    return owned


def _load_f8_bias(entry: TensorEntry, place: StoredIn, rows: slice | None) -> QuantizedTensor:
    import torch

    values = tensor_of(place).to(
        torch.bfloat16
    )  # exact; mistral.rs casts the bias of an FP8 layer to F8_E4M3
    qt = QuantizedTensor(entry.layout, entry.shape, {"weight": values})
    return qt if rows is None else qt.narrow(0, *row_range(entry, rows))

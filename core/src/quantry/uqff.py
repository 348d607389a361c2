"""UQFF 1.x checkpoints: packed layers in shards, the rest in `residual.safetensors` (mistral.rs,
uqff-format.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantry.codec import UqffCodec
from quantry.errors import DuplicateTensor, FormatError, HeaderError, PluginError, QuantryError
from quantry.format import Detection, Format, TensorEntry
from quantry.hints import dist_for_tag
from quantry.layout import Layout, Shape
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
from quantry.uqff_report import REPORT, OutputReport, read_report
from quantry.uqff_shards import Entries, read_entries, shards_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RESIDUAL", "Layer", "UqffFormat", "read_layer"]

RESIDUAL = "residual.safetensors"

LAST_TAG = 6  # of UQFF 1.2
_SMALL_BYTES = 4096  # entries up to this size are facts about the layer, read while listing
_PLAIN = ("unquant", "f32", "f16", "bf16")
_BIAS_DTYPES = ("f32", "f16", "bf16", "f64", "f8_e4m3")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as stored: its codec, what the codec makes of it, and where its entries lie by suffix."""

    key: str
    codec: UqffCodec
    layout: Layout
    shape: Shape
    parts: Mapping[str, StoredIn]
    bias: StoredIn | None


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
        shards = shards_of(source)
        stored = read_entries(source, shards)
        layers: list[Layer] = []
        for key in layer_keys(stored):
            try:
                layer = read_layer(stored, key)
            except QuantryError as e:
                yield e.file or shards[0], e.tensor or key, e.problem
            else:
                layers.append(layer)
                yield from _mismatches(layer)
        for name in _surplus(stored):
            yield stored.places[name].mapped.path.name, name, "belongs to no layer"
        report = next((output for output in read_report(source) or [] if output.shards == shards), None)
        if report is not None:
            yield from _report_mismatches(report, layers)
        if strict:
            yield from _strict(source, stored, report, layers)


def layer_keys(stored: Entries) -> list[str]:
    """Keys of every layer, sorted byte-wise: whatever has a weight or a tag."""
    keys = {name.removesuffix(".weight") for name in stored.places if name.endswith(".weight")}
    keys |= {name.removesuffix(".weight.format") for name in stored.places if name.endswith(".weight.format")}
    return sorted(keys, key=str.encode)


def read_layer(stored: Entries, key: str) -> Layer:
    """One layer, from its headers and small entries. Raises FormatError or PluginError."""
    parts = _parts(stored, key)
    anchor = next(iter(parts.values()))
    try:
        if "" not in parts:
            raise FormatError("is missing, though the file holds its `weight.format`")
        codecs = _codecs(_tag(parts.get(".format")))
        specs = {suffix: place.stored.spec for suffix, place in parts.items() if suffix != ".format"}
        small = {
            suffix: _tensor(parts[suffix])
            for suffix, spec in specs.items()
            if suffix and spec.nbytes <= _SMALL_BYTES
        }
        codec, layout, shape = _understand(codecs, specs, small)
        reason = layout.why_not(shape)
        if reason is not None:
            raise HeaderError(f"{layout} cannot hold shape {list(shape)}: {reason}")
    except QuantryError as e:
        e.file, e.tensor = e.file or str(anchor.mapped.path), e.tensor or f"{key}.weight"
        raise
    bias = stored.places.get(f"{key}.bias")
    if bias is not None and (bias.stored.dtype not in _BIAS_DTYPES or bias.stored.shape != shape[:-1]):
        raise HeaderError(
            f"must be floats of {list(shape[:-1])}, found {bias.stored.dtype} {list(bias.stored.shape)}",
            file=bias.mapped.path,
            tensor=f"{key}.bias",
        )
    return Layer(key, codec, layout, shape, parts, bias)


def _parts(stored: Entries, key: str) -> dict[str, StoredIn]:
    weight = f"{key}.weight"
    names = stored.suffixes.get(key, ())
    return {name[len(weight) :]: stored.places[name] for name in names}


def _tag(place: StoredIn | None) -> int:
    if place is None:
        raise FormatError("has no `weight.format`")
    if place.stored.dtype != "u8" or place.stored.shape != ():
        raise HeaderError(
            f"`weight.format` must be a u8 scalar, found {place.stored.dtype} {list(place.stored.shape)}"
        )
    return place.mapped.read(place.stored.offset, 1)[0]


def _codecs(tag: int) -> list[UqffCodec]:
    from quantry.plugins import registry

    found = [codec for codec in registry().codecs if codec.tag == tag]
    if found:
        return found
    if tag > LAST_TAG:
        raise HeaderError(f"tag {tag} is unknown to UQFF 1.2, which ends at {LAST_TAG}")
    raise PluginError(f"no installed plugin reads UQFF tag {tag}", hint=f"pip install {dist_for_tag(tag)}")


def _understand(
    codecs: list[UqffCodec], specs: Mapping[str, Any], small: Mapping[str, Tensor]
) -> tuple[UqffCodec, Layout, Shape]:
    refusals: list[QuantryError] = []
    for codec in codecs:
        try:
            return (codec, *codec.layout_of(specs, small))
        except QuantryError as e:
            refusals.append(e)
    raise refusals[0]


def _layer_entries(layer: Layer, tied: bool) -> Iterator[TensorEntry]:
    name = f"{layer.key}.weight"
    yield TensorEntry(name, layer.layout, layer.shape, ops_of(name, layer.shape, tied), layer)
    if layer.bias is not None:
        stored = layer.bias.stored
        layout = Dense("bf16" if stored.dtype.startswith("f8") else stored.dtype)
        yield TensorEntry(f"{layer.key}.bias", layout, stored.shape, (), layer.bias)


def _tensor(place: StoredIn) -> Tensor:
    return place.mapped.tensor(place.stored.offset, place.stored.spec)


def _load_layer(entry: TensorEntry, layer: Layer, rows: slice | None) -> QuantizedTensor:
    parts = {suffix: _tensor(place) for suffix, place in layer.parts.items() if suffix != ".format"}
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

    values = _tensor(place).to(torch.bfloat16)  # exact; mistral.rs casts the bias of an FP8 layer to F8_E4M3
    qt = QuantizedTensor(entry.layout, entry.shape, {"weight": values})
    return qt if rows is None else qt.narrow(0, *row_range(entry, rows))


def _mismatches(layer: Layer) -> Iterator[tuple[str, str, str]]:
    """Entries that the layer's tag does not have, or has otherwise."""
    expected = layer.codec.entries(layer.layout, layer.shape)
    for suffix, place in layer.parts.items():
        name = f"{layer.key}.weight{suffix}"
        if suffix != ".format" and suffix not in expected:
            yield place.mapped.path.name, name, f"is no entry of UQFF tag {layer.codec.tag}"
    for suffix in expected:
        if suffix not in layer.parts:
            yield layer.parts[""].mapped.path.name, f"{layer.key}.weight{suffix}", "is missing"


def _surplus(stored: Entries) -> list[str]:
    keys = set(layer_keys(stored))
    owned = {name for key in keys for name in stored.suffixes.get(key, ())} | {f"{key}.bias" for key in keys}
    return [name for name in stored.places if name not in owned]


def _report_mismatches(report: OutputReport, layers: list[Layer]) -> Iterator[tuple[str, str, str]]:
    if not report.layers:
        return
    listed = {layer.module: layer for layer in report.layers}
    found = {layer.key: layer for layer in layers}
    for key in sorted(set(listed) ^ set(found)):
        where = (
            "the report lists it, the shards do not hold it"
            if key in listed
            else "the report does not list it"
        )
        yield REPORT, key, where
    for key in sorted(set(listed) & set(found)):
        layer = found[key]
        label = layer.codec.label(layer.layout)
        if listed[key].stored != label:
            yield REPORT, key, f"the report says {listed[key].stored}, stored is {label}"
        if listed[key].shape != layer.shape:
            yield REPORT, key, f"the report says {list(listed[key].shape)}, stored is {list(layer.shape)}"


def _strict(
    source: Source, stored: Entries, report: OutputReport | None, layers: list[Layer]
) -> Iterator[tuple[str, str, str]]:
    for shard, metadata in stored.metadata.items():
        if "uqff.producer" not in metadata:
            yield shard, "", "has no `uqff.producer` metadata"
    for name in (REPORT, RESIDUAL, "config.json"):
        if source.sibling(name) is None:
            yield name, "", "is missing"
    if report is None:
        return
    kept = {layer.module for layer in report.layers if layer.default_target is None}
    labels = [layer.codec.label(layer.layout) for layer in layers if layer.key not in kept]
    for label, count in sorted(Counter(labels).items()):
        if label in _PLAIN and report.quant not in _PLAIN:
            yield stored.shards[0], "", f"{count} layers fell back to {label}"

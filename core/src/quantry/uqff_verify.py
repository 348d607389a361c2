"""What `quantry verify` says of a UQFF output: the rules of mistral.rs' `uqff verify`, and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from quantry.errors import QuantryError
from quantry.source import Source, release_pages
from quantry.uqff_extension import EXTENSION_TAG
from quantry.uqff_layer import Layer, layer_keys, read_layer, tensor_of
from quantry.uqff_report import REPORT, OutputReport, read_report
from quantry.uqff_shards import RESIDUAL, Entries, read_entries, shards_of, stem_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["problems_of"]

_PLAIN = ("unquant", "f32", "f16", "bf16")
_RUN_WEIGHTS = 4 << 20  # weights made dense at a time


def problems_of(source: Source, strict: bool) -> Iterator[tuple[str, str, str]]:
    """Faulty layers, surplus entries, a report that disagrees.

    strict: also what mistral.rs' `uqff verify --strict` rejects, layers and generations that it does not
    read, and numbers that are not finite, for which every layer's data is read.
    """
    shards = shards_of(source)
    stored = read_entries(source, shards)
    keys = layer_keys(stored)
    layers: list[Layer] = []
    for key in keys:
        try:
            layer = read_layer(stored, key)
        except QuantryError as e:
            yield e.file or shards[0], e.tensor or key, e.problem
        else:
            layers.append(layer)
            yield from _mismatches(layer)
    for name in _surplus(stored, keys):
        yield stored.places[name].mapped.path.name, name, "belongs to no layer"
    reports = read_report(source) or []
    report = next((output for output in reports if output.shards == shards), None)
    if report is not None:
        yield from _report_mismatches(report, layers, len(keys))
        yield from _unlisted(source, reports, report)
    if strict:
        yield from _strict(source, stored, report, layers)
        yield from _not_finite(layers)


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


def _surplus(stored: Entries, keys: Iterable[str]) -> list[str]:
    owned = {name for key in keys for name in (*stored.suffixes.get(key, ()), f"{key}.bias")}
    return [name for name in stored.places if name not in owned]


def _unlisted(
    source: Source, reports: Iterable[OutputReport], report: OutputReport
) -> Iterator[tuple[str, str, str]]:
    """Files that are numbered as this output's shards are; mistral.rs goes by the report and skips them."""
    listed = {shard for output in reports for shard in output.shards}
    stems = {stem_of(shard) for shard in report.shards} - {None}
    for path in sorted(source.root.iterdir()):
        if path.is_file() and path.name not in listed and stem_of(path.name) in stems:
            yield path.name, "", "is a shard that the report does not list"


def _report_mismatches(
    report: OutputReport, layers: list[Layer], count: int
) -> Iterator[tuple[str, str, str]]:
    if report.declared_layers not in (None, count):
        yield REPORT, "", f"the report counts {report.declared_layers} layers, the shards hold {count}"
    labels = dict(sorted(Counter(layer.codec.label(layer.layout) for layer in layers).items()))
    if len(layers) == count and report.declared_counts not in (None, labels):
        yield REPORT, "", f"the report counts {report.declared_counts}, stored are {labels}"
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
        if listed[key].shape not in (layer.shape, layer.parts[""].stored.shape):
            yield REPORT, key, f"the report says {list(listed[key].shape)}, stored is {list(layer.shape)}"


def _strict(
    source: Source, stored: Entries, report: OutputReport | None, layers: list[Layer]
) -> Iterator[tuple[str, str, str]]:
    if stored.version[0] == 0:
        version = ".".join(map(str, stored.version))
        yield stored.shards[0], "", f"is UQFF {version}, which mistral.rs no longer reads"
    for shard, metadata in stored.metadata.items():
        if "uqff.producer" not in metadata:
            yield shard, "", "has no `uqff.producer` metadata"
    for name in (REPORT, RESIDUAL, "config.json"):
        if source.sibling(name) is None:
            yield name, "", "is missing"
    for layer in layers:
        if layer.codec.tag == EXTENSION_TAG:
            where = layer.parts[""].mapped.path.name
            yield (
                where,
                f"{layer.key}.weight",
                f"is {layer.layout} in Quantry's extension: mistral.rs refuses it",
            )
    if report is None:
        return
    kept = {layer.module for layer in report.layers if layer.default_target is None}
    labels = [layer.codec.label(layer.layout) for layer in layers if layer.key not in kept]
    for label, count in sorted(Counter(labels).items()):
        if label in _PLAIN and report.quant not in _PLAIN:
            yield stored.shards[0], "", f"{count} layers fell back to {label}"


def _not_finite(layers: Iterable[Layer]) -> Iterator[tuple[str, str, str]]:
    """Layers whose scales or values make NaN or Inf, and those whose data their layout refuses."""
    for layer in layers:
        file, name = layer.parts[""].mapped.path.name, f"{layer.key}.weight"
        try:
            if not all(part.isfinite().all() for part in _dense_parts(layer)):
                yield file, name, "holds NaN or Inf"
            if layer.bias is not None and not tensor_of(layer.bias).float().isfinite().all():
                yield layer.bias.mapped.path.name, f"{layer.key}.bias", "holds NaN or Inf"
        except QuantryError as e:
            yield e.file or file, e.tensor or name, e.problem


def _dense_parts(layer: Layer) -> Iterator[Tensor]:
    """The layer's numbers, a few rows at a time where its layout can be cut."""
    qt = layer.codec.decode(
        {suffix: tensor_of(place) for suffix, place in layer.parts.items() if suffix != ".format"},
        layer.layout,
        layer.shape,
    )
    step = layer.layout.step(-2) if len(layer.shape) > 1 else None
    if step is None:
        yield qt.dequantize()
        return
    rows = max(1, _RUN_WEIGHTS * layer.shape[-2] // max(1, qt.numel) // step) * step
    for start in range(0, layer.shape[-2], rows):
        yield qt.narrow(-2, start, min(rows, layer.shape[-2] - start)).dequantize()
    for buffer in qt.buffers.values():
        release_pages(buffer)

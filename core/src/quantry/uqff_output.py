"""The shards of one UQFF output: planned from layouts, then written in any order (mistral.rs,
uqff-format.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantry.codec import UqffCodec
from quantry.dtypes import torch_dtype
from quantry.errors import DuplicateTensor, ShapeError, UsageError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.stream import StreamWriter
from quantry.tensor import QuantizedTensor
from quantry.uqff_extension import ANY_FAMILY, EXTENSION_TAG, extension_metadata
from quantry.uqff_report import LayerReport, OutputReport
from quantry.uqff_shards import VERSION, VERSION_KEYS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SHARD_BYTES",
    "VERSION_TEXT",
    "OutputWriter",
    "PlannedLayer",
    "codec_for",
    "is_row_wise",
    "metadata",
    "plan_layer",
    "plan_shards",
    "report_of",
    "shard_names",
]

SHARD_BYTES = 10 * 1024**3
VERSION_TEXT = ".".join(map(str, VERSION))

# `<key>.bias` by tag, as mistral.rs writes it; others keep the source's type (mistral.rs casts FP8's to F8:
# lossy)
_BIAS_DTYPE = {0: "f32", 2: "f32", 5: "f32", 6: "bf16"}


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer before its data: how it is stored, and what the report says of it."""

    key: str
    codec: UqffCodec
    layout: Layout
    shape: Shape
    bias: BufferSpec | None
    report: LayerReport

    def entries(self) -> dict[str, BufferSpec]:
        """Entry name → element type and shape, tag and bias included."""
        weight = f"{self.key}.weight"
        found = {f"{weight}.format": BufferSpec("u8", ())}
        found |= {
            f"{weight}{suffix}": spec for suffix, spec in self.codec.entries(self.layout, self.shape).items()
        }
        if self.bias is not None:
            found[f"{self.key}.bias"] = self.bias
        return found


def plan_layer(
    key: str,
    layout: Layout,
    shape: Shape,
    bias: BufferSpec | None = None,
    default: str | None = None,
    resolved: str | None = None,
    reason: str | None = None,
    family: str | None = None,
    extension: bool = True,
) -> PlannedLayer:
    """How a weight of this layout is stored. family, extension: as `codec_for`, whose errors it raises."""
    codec = codec_for(layout, shape, f"{key}.weight", family, extension)
    if bias is not None:
        bias = BufferSpec(_BIAS_DTYPE.get(codec.tag, bias.dtype), bias.shape)
        if bias.shape != shape[:-1]:
            raise ShapeError(
                f"bias has shape {list(bias.shape)}, the weight needs {list(shape[:-1])}",
                tensor=f"{key}.bias",
            )
    extended = codec.tag == EXTENSION_TAG
    report = LayerReport(
        key, codec.label(layout), _told(codec, layout, shape), default, resolved, reason, extended
    )
    return PlannedLayer(key, codec, layout, shape, bias, report)


def _told(codec: UqffCodec, layout: Layout, shape: Shape) -> Shape:
    """The shape in the report: as in mistral.rs that of `<key>.weight`, where no entry states the own one."""
    entries = codec.entries(layout, shape)
    return shape if any(suffix.endswith(".shape") for suffix in entries) else entries[""].shape


def codec_for(
    layout: Layout, shape: Shape, name: str, family: str | None = None, extension: bool = True
) -> UqffCodec:
    """The tag that stores `layout`. Raises ShapeError with every reason when there is none.

    family: of the layout that this one is the fallback for; its codec comes first. Where a ggml type does not
    fit, mistral.rs keeps the plain weight under the ggml tag, which runs with activations of any type.
    extension: permit Quantry's own tag, which mistral.rs refuses, where no other fits.
    """
    from quantry.plugins import registry

    reasons = []
    wanted = [family or layout.family, layout.family, *([ANY_FAMILY] if extension else [])]
    for kind in dict.fromkeys(wanted):
        for codec in (c for c in registry().codecs if c.family == kind):
            reason = codec.why_not(layout, shape)
            if reason is None:
                return codec
            reasons.append(reason)
    hint = "Store it as a type that UQFF knows, or save the checkpoint in its own format."
    if not extension:
        hint = "Quantize it anew to a type that UQFF knows (portable='q8_0', --portable=q8_0), or permit"
        hint += " Quantry's extension, which mistral.rs refuses (portable=False)."
    raise ShapeError(
        f"UQFF cannot store {layout}: {'; '.join(reasons) or 'no installed plugin has a tag for it'}",
        tensor=name,
        hint=hint,
    )


def metadata(layers: Iterable[PlannedLayer] = ()) -> dict[str, str]:
    """`__metadata__` of every file; `uqff verify` of mistral.rs asks for the producer.

    layers: of the output; those in the extension are announced.
    """
    from quantry import __version__

    return {
        "uqff.producer": "quantry",
        "uqff.producer.quantry.version": __version__,
        "uqff.version": VERSION_TEXT,
        **extension_metadata(layer.layout for layer in layers if layer.codec.tag == EXTENSION_TAG),
    }


def plan_shards(
    layers: Iterable[PlannedLayer], shard_bytes: int = SHARD_BYTES
) -> list[dict[str, BufferSpec]]:
    """The entries of each shard: layers by key; no entry but the first passes `shard_bytes`."""
    current = {key: BufferSpec("u32", ()) for key in VERSION_KEYS}  # the first shard only
    used = sum(spec.nbytes for spec in current.values())
    shards = [current]
    for layer in sorted(layers, key=lambda layer: layer.key.encode()):
        for name, spec in layer.entries().items():
            if used and used + spec.nbytes > shard_bytes:
                current, used = {}, 0
                shards.append(current)
            if name in current:
                raise DuplicateTensor("occurs twice among the layers to write", tensor=name)
            current[name] = spec
            used += spec.nbytes
    return shards


def shard_names(stem: str, count: int) -> tuple[str, ...]:
    """`<stem>-0.uqff`, `<stem>-1.uqff`, …: numbered even when there is one."""
    return tuple(f"{stem}-{index}.uqff" for index in range(count))


def report_of(stem: str, quant: str, layers: Sequence[PlannedLayer], shards: int) -> OutputReport:
    """What the report says of an output of so many shards: its layers in the order of the files."""
    ordered = sorted(layers, key=lambda layer: layer.key.encode())
    return OutputReport(quant, shard_names(stem, shards), tuple(layer.report for layer in ordered))


class OutputWriter:
    """The shards of one output, written in any order and from several threads. Use as a context.

    resume, join: as in `StreamWriter`.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        quant: str,
        layers: Sequence[PlannedLayer],
        shard_bytes: int = SHARD_BYTES,
        resume: bool = False,
        join: bool = False,
    ) -> None:
        self.layers = {layer.key: layer for layer in layers}
        self._row_bytes: dict[str, Mapping[str, int]] = {}
        shards = plan_shards(layers, shard_bytes)
        self.report = report_of(stem, quant, layers, len(shards))
        self._writers: list[StreamWriter] = []
        self._writer_of: dict[str, StreamWriter] = {}
        try:
            for name, specs in zip(self.report.shards, shards, strict=True):
                self._writers.append(StreamWriter(folder / name, specs, metadata(layers), resume, join))
                self._writer_of |= dict.fromkeys(specs, self._writers[-1])
            if not join:
                self._write_tags()
        except BaseException:
            self.abort()
            raise

    def _write_tags(self) -> None:
        for key, number in zip(VERSION_KEYS, VERSION, strict=True):
            self._write(key, number.to_bytes(4, "little"))
        for key, layer in self.layers.items():
            self._write(f"{key}.weight.format", bytes([layer.codec.tag]))

    def __enter__(self) -> OutputWriter:
        return self

    def __exit__(self, kind: object, error: object, tb: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write_layer(self, key: str, qt: QuantizedTensor) -> None:
        """A layer's whole weight."""
        for suffix, tensor in self.layers[key].codec.encode(qt).items():
            self._write(f"{key}.weight{suffix}", tensor)

    def write_facts(self, key: str) -> None:
        """The entries of a layer that follow from layout and shape alone, before its rows come."""
        for suffix, tensor in facts_of(self.layers[key]).items():
            self._write(f"{key}.weight{suffix}", tensor)

    def write_rows(self, key: str, block: QuantizedTensor, first_row: int) -> None:
        """The rows of a layer from `first_row` on; rows of an expert stack count through all experts."""
        sizes = self._row_bytes_of(key)
        for suffix, tensor in self.layers[key].codec.encode(block).items():
            if suffix in sizes:
                self._write(f"{key}.weight{suffix}", tensor, sizes[suffix] * first_row)

    @property
    def found(self) -> bool:
        """Whether an earlier writer left all shards, so that `mark_layer` and `mark_rows` may be believed."""
        return all(writer.found for writer in self._writers)

    def mark_layer(self, key: str) -> None:
        """An earlier writer wrote a layer's whole weight."""
        layer = self.layers[key]
        for suffix, spec in layer.codec.entries(layer.layout, layer.shape).items():
            self._writer_of[f"{key}.weight{suffix}"].mark(f"{key}.weight{suffix}", 0, spec.nbytes)

    def mark_rows(self, key: str, first_row: int, count: int) -> None:
        """An earlier writer wrote these rows of a layer."""
        for suffix, row in self._row_bytes_of(key).items():
            name = f"{key}.weight{suffix}"
            self._writer_of[name].mark(name, row * first_row, row * (first_row + count))

    def _row_bytes_of(self, key: str) -> Mapping[str, int]:
        """Suffix → bytes of one row, of the entries that grow with the rows; worked out once a layer."""
        found = self._row_bytes.get(key)
        if found is None:
            layer = self.layers[key]
            whole, rows = layer.codec.entries(layer.layout, layer.shape), math.prod(layer.shape[:-1])
            found = self._row_bytes[key] = {s: whole[s].nbytes // rows for s in row_entries(layer)}
        return found

    def sync(self) -> None:
        """Flush what was written to the disk."""
        for writer in self._writers:
            writer.sync()

    def write_bias(self, key: str, bias: Tensor) -> None:
        """A layer's bias, cast to the type its tag keeps."""
        spec = self.layers[key].bias
        if spec is None:
            raise UsageError("no bias was planned", tensor=f"{key}.bias")
        self._write(f"{key}.bias", bias.to(torch_dtype(spec.dtype)))

    def close(self) -> None:
        """Check and complete every shard."""
        try:
            for writer in self._writers:
                writer.close()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was written."""
        for writer in self._writers:
            writer.abort()

    def _write(self, name: str, values: Tensor | bytes, offset: int = 0) -> None:
        self._writer_of[name].write(name, values, offset)


def is_row_wise(layer: PlannedLayer) -> bool:
    """Whether blocks of rows can be written alone: each entry grows as the rows do, or is a known fact."""
    if math.prod(layer.shape[:-1]) < 2 or layer.layout.why_not(_one_row(layer.shape)) is not None:
        return False
    if layer.layout.step(-2) != 1 or not _rows_lead(layer):
        return False
    whole = layer.codec.entries(layer.layout, layer.shape)
    row = layer.codec.entries(layer.layout, _one_row(layer.shape))
    scaled = row_entries(layer)
    proportional = all(row[s].nbytes * math.prod(layer.shape[:-1]) == whole[s].nbytes for s in scaled)
    return proportional and set(whole) == scaled | set(facts_of(layer))


def _rows_lead(layer: PlannedLayer) -> bool:
    """Whether every buffer has the rows in front: then those of neighbouring rows are neighbours."""
    rows = layer.shape[:-1]
    return all(spec.shape[: len(rows)] == rows for spec in layer.layout.buffers(layer.shape).values())


def row_entries(layer: PlannedLayer) -> frozenset[str]:
    """Suffixes of the entries that grow with the rows."""
    whole = layer.codec.entries(layer.layout, layer.shape)
    row = layer.codec.entries(layer.layout, _one_row(layer.shape))
    return frozenset(suffix for suffix in whole if row[suffix] != whole[suffix])


def facts_of(layer: PlannedLayer) -> dict[str, Tensor]:
    """The entries that follow from layout and shape alone: what the codec makes of a weight without data."""
    import torch

    specs = layer.layout.buffers(layer.shape)
    buffers = {
        n: torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device="meta") for n, spec in specs.items()
    }
    try:
        encoded = layer.codec.encode(QuantizedTensor(layer.layout, layer.shape, buffers))
    except RuntimeError:  # this codec looks at the data
        return {}
    return {suffix: tensor for suffix, tensor in encoded.items() if tensor.device.type != "meta"}


def _one_row(shape: Shape) -> Shape:
    return (*(1 for _ in shape[:-1]), shape[-1])

"""Plain safetensors checkpoints: one file, or a folder with or without an index of shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from quantry.errors import DuplicateTensor, FormatError, HeaderError, PluginError, UsageError
from quantry.format import Detection, Format, TensorEntry
from quantry.hints import dist_for_method
from quantry.layout import BufferSpec, Layout
from quantry.layouts.dense import Dense
from quantry.roles import ops_of
from quantry.safetensors_header import Header, StoredTensor, parse_header
from quantry.source import MappedFile, Source
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SafetensorsFormat",
    "StoredIn",
    "dense_entry",
    "load_dense",
    "parse_header",
    "read_config",
    "weight_files",
]

_SUFFIX = ".safetensors"
_INDEX = ".safetensors.index.json"


class StoredIn(NamedTuple):
    """Where one dense tensor lies."""

    mapped: MappedFile
    stored: StoredTensor


class SafetensorsFormat(Format):
    """Dense weights as `Dense` layouts. Gives way to method plugins when the config names a quant method."""

    name = "safetensors"

    def detect(self, source: Source) -> Detection | None:
        """Any source with safetensors weights; 50 sure, 10 when its config says they are quantized."""
        if not source.with_suffix(_SUFFIX) and not source.with_suffix(_INDEX):
            return None
        method = quant_method(read_config(source))
        if method is not None:
            return Detection(
                self.name, 10, f"safetensors, but the config says {method!r}", {"method": method}
            )
        return Detection(self.name, 50, "safetensors without a quantization_config")

    def entries(self, source: Source, detection: Detection) -> Iterable[TensorEntry]:
        """Every tensor, shard by shard. Raises FormatError for shards missing or at odds with their index."""
        method = detection.facts.get("method")
        if method is not None:
            dist = dist_for_method(method)
            raise PluginError(
                f"its weights are quantized by {method!r}, and no installed plugin reads that",
                file=source.path,
                hint=f"pip install {dist}" if dist else "`quantry plugins` lists what is installed.",
            )
        tied = bool(read_config(source).get("tie_word_embeddings"))
        files = weight_files(source)
        found: dict[str, str] = {}
        for file, header in files.items():
            for name in header.tensors:
                if name in found:
                    raise DuplicateTensor(
                        f"occurs in {found[name]} too", file=source.root / file, tensor=name
                    )
                found[name] = file
        _check_index(source, found)
        for file, header in files.items():
            for name, stored in header.tensors.items():
                yield dense_entry(name, source.file(file), stored, tied)

    def load(self, entry: TensorEntry, rows: slice | None = None) -> QuantizedTensor:
        """A view of the mapped file; with `rows`, a copy of those rows."""
        place: StoredIn = entry.place
        return load_dense(entry, place.mapped, place.stored, rows)

    def config(self, source: Source, detection: Detection) -> Mapping[str, Any]:
        """`config.json`, {} without one."""
        return read_config(source)

    def architecture(self, source: Source, detection: Detection) -> str | None:
        """The first of `architectures`, else `model_type`."""
        return architecture_of(read_config(source))

    def verify(
        self, source: Source, detection: Detection, strict: bool = False
    ) -> Iterable[tuple[str, str, str]]:
        """strict: tensors that the index does not name, and a wrong total size."""
        index = _index_name(source)
        if not strict or index is None:
            return
        files = weight_files(source)
        listed = _weight_map(source, index)
        for file, header in files.items():
            for name in header.tensors:
                if name not in listed:
                    yield file, name, f"is not named in {index}"
        total = sum(stored.nbytes for header in files.values() for stored in header.tensors.values())
        metadata = source.read_json(index).get("metadata")
        declared = metadata.get("total_size", total) if isinstance(metadata, dict) else total
        if declared != total:
            yield index, "", f"declares {declared} bytes of tensors, the shards hold {total}"


def read_config(source: Source) -> dict[str, Any]:
    """`config.json` beside the weights, {} without one. Raises HeaderError when it is not a JSON object."""
    if source.sibling("config.json") is None:
        return {}
    config = source.read_json("config.json")
    if not isinstance(config, dict):
        raise HeaderError("is not a JSON object", file=source.root / "config.json")
    return config


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The architecture as a Hugging Face config states it."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else None


def quant_method(config: Mapping[str, Any]) -> str | None:
    """The method by which a config says the weights are quantized; None for plain ones."""
    for owner in (config, config.get("text_config")):
        for key in ("quantization_config", "quantization"):
            section = owner.get(key) if isinstance(owner, dict) else None
            if isinstance(section, dict) and section:
                return str(section.get("quant_method") or "mlx")
    return None


def weight_files(source: Source) -> dict[str, Header]:
    """The headers of a source's safetensors files by file name.

    A folder's index decides which files count; without one `model.safetensors`, else all. Raises FormatError
    naming every shard that is missing.
    """
    index = _index_name(source)
    if index is not None:
        names = sorted(set(_weight_map(source, index).values()))
        missing = [name for name in names if source.sibling(name) is None]
        if missing:
            raise FormatError(
                f"names shards that do not exist: {', '.join(missing)}",
                file=source.root / index,
                hint="The download is incomplete; fetch the folder again.",
            )
    elif "model.safetensors" in source:
        names = ["model.safetensors"]
    else:
        packed = source.with_suffix(".uqff")  # beside them, residual.safetensors belongs to the UQFF
        names = [n for n in source.with_suffix(_SUFFIX) if not packed or n != "residual.safetensors"]
    return {name: parse_header(source.file(name)) for name in names}


def dense_entry(name: str, mapped: MappedFile, stored: StoredTensor, tied: bool = False) -> TensorEntry:
    """The entry of a plain tensor. Raises PluginError for types that mean nothing without a method."""
    layout = _dense_layout(stored.dtype, mapped, name)
    return TensorEntry(name, layout, stored.shape, ops_of(name, stored.shape, tied), StoredIn(mapped, stored))


def load_dense(
    entry: TensorEntry, mapped: MappedFile, stored: StoredTensor, rows: slice | None = None
) -> QuantizedTensor:
    """The tensor as a view; with `rows` a copy of those rows."""
    spec, offset = stored.spec, stored.offset
    if rows is not None:
        start, count = row_range(entry, rows)
        row = spec.nbytes // spec.shape[0] if spec.shape[0] else 0
        spec, offset = BufferSpec(spec.dtype, (count, *spec.shape[1:])), offset + start * row
    read = mapped.tensor if rows is None else mapped.copy
    values = read(offset, spec, entry.name)
    return QuantizedTensor(entry.layout, spec.shape, {"weight": _as_layout(values, entry.layout)})


def row_range(entry: TensorEntry, rows: slice) -> tuple[int, int]:
    """(first row, number of rows) of a slice of dim 0. Raises UsageError for a step, or without rows."""
    if not entry.shape:
        raise UsageError("has no rows to slice", tensor=entry.name)
    start, stop, step = rows.indices(entry.shape[0])
    if step != 1:
        raise UsageError(f"rows can be read with step 1 only, not {step}", tensor=entry.name)
    return start, max(0, stop - start)


def _dense_layout(dtype: str, mapped: MappedFile, name: str) -> Layout:
    if dtype == "bool":
        return Dense("u8")
    if dtype in Dense.DTYPES:
        return Dense(dtype)
    hint = "Its config.json lacks the quantization_config that says how to read it."
    if dtype.startswith("f8"):
        hint = f"pip install {dist_for_method('fp8')}"
    raise PluginError(
        f"{dtype} values mean nothing without their scales", file=mapped.path, tensor=name, hint=hint
    )


def _as_layout(values: Tensor, layout: Layout) -> Tensor:
    import torch

    return values.view(torch.uint8) if values.dtype == torch.bool else values


def _index_name(source: Source) -> str | None:
    names = source.with_suffix(_INDEX)
    if len(names) > 1 and f"model{_INDEX}" in names:
        return f"model{_INDEX}"
    if len(names) > 1:
        raise FormatError(
            f"holds several indexes: {', '.join(names)}", file=source.path, hint="Name one weight file."
        )
    return names[0] if names else None


def _weight_map(source: Source, index: str) -> dict[str, str]:
    parsed = source.read_json(index)
    found = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise HeaderError("has no `weight_map` of tensor names to files", file=source.root / index)
    return found


def _check_index(source: Source, found: Mapping[str, str]) -> None:
    index = _index_name(source)
    if index is None:
        return
    for name, file in _weight_map(source, index).items():
        if name not in found:
            raise FormatError(
                f"is named in {index}, but {file} does not hold it", file=source.root / index, tensor=name
            )
        if found[name] != file:
            raise FormatError(
                f"{index} says {file}, but {found[name]} holds it", file=source.root / index, tensor=name
            )

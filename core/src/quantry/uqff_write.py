"""Write UQFF 1.2: shards, residual tensors, config, report, in one go (mistral.rs, uqff-format.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantry.dtypes import dtype_name
from quantry.errors import UsageError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.dense import Dense
from quantry.roles import Role, role_of
from quantry.staging import StagedFolder
from quantry.stream import write_safetensors
from quantry.tensor import QuantizedTensor
from quantry.uqff import RESIDUAL
from quantry.uqff_output import SHARD_BYTES, VERSION_TEXT, OutputWriter, metadata, plan_layer
from quantry.uqff_portable import EXACT, portable_weight
from quantry.uqff_report import REPORT, OutputReport, report_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SUPPORT_FILES", "is_layer", "output_place", "save_uqff", "stale_shards", "write_support"]

SUPPORT_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
    "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


def save_uqff(
    path: str | Path,
    tensors: Mapping[str, QuantizedTensor | Tensor],
    biases: Mapping[str, Tensor] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, Path | bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
    base_model: str | None = None,
    portable: bool | str = False,
) -> tuple[Path, ...]:
    """Write weights as UQFF: `d/x.uqff` gives `d/x-0.uqff` …, `residual.safetensors`, a config, a report.

    tensors: by name. Packed ones and dense matrices of linear layers, embeddings and experts become layers;
    their names end in `.weight`. Norms, routers and the rest go to the residual file, as do dense tensors of
    other names. biases: by the layer's name (`x`, `x.weight` or `x.bias`); a bias among `tensors` counts as
    well. config: without its `quantization_config`s. files: more files to put beside (tokenizer), by name.
    portable: what becomes of layouts that no UQFF tag stores. False: Quantry's extension, which mistral.rs
    refuses. True or "exact": they are rewritten without changing a number, or ShapeError names the layer. An
    ISQ type ("q8_0"): those without an exact way are quantized anew to it.
    Returns the shards' paths; on any failure the folder is as it was.
    """
    folder, stem = output_place(Path(path))
    packed, residual, layer_biases = _sorted_out(tensors, biases or {})
    if portable:
        to = EXACT if portable is True else portable
        packed = {key: portable_weight(f"{key}.weight", qt, to) for key, qt in packed.items()}
    layers = [
        plan_layer(key, qt.layout, qt.shape, _spec(layer_biases[key]) if key in layer_biases else None)
        for key, qt in packed.items()
    ]
    with StagedFolder(folder) as staged:
        with OutputWriter(staged.payload, stem, stem, layers, shard_bytes) as out:
            for key, qt in packed.items():
                out.write_layer(key, qt)
            for key, bias in layer_biases.items():
                out.write_bias(key, bias)
        write_safetensors(staged.payload / RESIDUAL, residual, metadata())
        write_support(staged.payload, config, files or {}, [out.report], base_model)
        staged.publish(stale_shards(folder, [stem]))
    return tuple(folder / shard for shard in out.report.shards)


def output_place(path: Path) -> tuple[Path, str]:
    """(folder, stem) of an output path: `d/x.uqff` and `d/x-0.uqff` are (d, "x"), `d` is (d, "model")."""
    if path.suffix != ".uqff":
        return path, "model"
    return path.parent, path.stem.removesuffix("-0")


def stale_shards(folder: Path, stems: Iterable[str]) -> list[str]:
    """Shards of earlier outputs with these stems."""
    if not folder.is_dir():
        return []
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, stems))})-\d+\.uqff\Z")
    return sorted(p.name for p in folder.iterdir() if pattern.match(p.name))


def write_support(
    folder: Path,
    config: Mapping[str, Any] | None,
    files: Mapping[str, Path | bytes],
    reports: Sequence[OutputReport],
    base_model: str | None = None,
) -> None:
    """config.json, the files beside it, and the report."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    if config is not None:
        try:
            text = json.dumps(without_quantization(config), indent=2, ensure_ascii=False)
        except (TypeError, ValueError) as e:
            raise UsageError(f"the config is no JSON: {e}") from e
        (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / REPORT).write_bytes(report_json(reports, VERSION_TEXT, base_model))


def without_quantization(value: Any) -> Any:
    """The value without any `quantization_config` key, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_quantization(v) for key, v in value.items() if key != "quantization_config"}
    return [without_quantization(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_layer(name: str, layout: Layout, shape: Shape, role: Role | None = None) -> bool:
    """Whether a weight is a UQFF layer rather than a residual tensor. role: where it is known."""
    if layout.family != "dense":
        return True
    floats = isinstance(layout, Dense) and layout.dtype in ("f32", "f16", "bf16")
    return (
        floats
        and name.endswith(".weight")
        and (role or role_of(name, shape)) in ("linear", "embedding", "head", "experts")
    )


def _sorted_out(
    tensors: Mapping[str, QuantizedTensor | Tensor], biases: Mapping[str, Tensor]
) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor], dict[str, Tensor]]:
    """Layers by key, residual tensors by name, biases by key."""
    packed: dict[str, QuantizedTensor] = {}
    residual: dict[str, Tensor] = {}
    for name, value in tensors.items():
        qt = value if isinstance(value, QuantizedTensor) else _as_dense(value)
        if not is_layer(name, qt.layout, qt.shape):
            residual[name] = qt.buffers["weight"]
            continue
        if not name.endswith(".weight"):
            raise UsageError(
                "UQFF stores a packed weight as `<key>.weight`", tensor=name, hint="Rename it so."
            )
        packed[name.removesuffix(".weight")] = qt
    found: dict[str, Tensor] = {}
    for name, bias in biases.items():
        key = name.removesuffix(".bias").removesuffix(".weight")
        if key not in packed:
            raise UsageError("is the bias of no weight given", tensor=name)
        found[key] = bias
    for name in [n for n in residual if n.endswith(".bias") and n.removesuffix(".bias") in packed]:
        found.setdefault(name.removesuffix(".bias"), residual.pop(name))
    return packed, residual, found


def _as_dense(tensor: Tensor) -> QuantizedTensor:
    plain = tensor.detach().contiguous()
    return QuantizedTensor(Dense(dtype_name(plain.dtype)), tuple(plain.shape), {"weight": plain})


def _spec(tensor: Tensor) -> BufferSpec:
    return BufferSpec(dtype_name(tensor.dtype), tuple(tensor.shape))

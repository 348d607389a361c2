"""What a checkpoint offers a GGUF file: key-values with types, weights under GGUF names and in GGUF order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import quantry
from quantry import Checkpoint, Dense, Layout, PluginError, TensorEntry, UsageError, WeightSource
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.split import Part
from quantry_gguf.tensor_types import Present
from quantry_gguf.values import Value, typed_values

if TYPE_CHECKING:
    from quantry import Runtime

__all__ = ["ConvertSource", "open_source", "present", "stored_type"]

_SPLIT = ("split.no", "split.count", "split.tensors.count")
# of an exported checkpoint these are float32 whatever they were, as convert_hf_to_gguf.py writes them
_FLOAT32 = ("ffn_gate_inp", "position_embd.weight", "token_types.weight", "ssm_conv1d", "shortconv.conv")
_CASTS = ("f32", "f16", "bf16")


class ConvertSource(NamedTuple):
    """values: key-values. weights: by GGUF name. own: it is a GGUF file, whose tensors have GGUF types.

    names: gives the model's own name of a weight, with `.weight` and without → GGUF's, which takes a runtime.
    """

    values: Mapping[str, Value]
    weights: WeightSource
    own: bool
    names: Callable[[], Mapping[str, str]]


def open_source(checkpoint: Checkpoint) -> ConvertSource:
    """A GGUF file as it is, another checkpoint as an installed runtime exports it.

    Raises UsageError with each runtime's reason where none can, PluginError where none is installed.
    """
    runtimes: tuple[Runtime, ...] = quantry.registry().runtimes
    if checkpoint.format.name == "gguf":
        parts: tuple[Part, ...] = checkpoint.detection.facts["parts"]
        header = parts[0].header
        values = {
            key: Value(*header.kinds[key], value) for key, value in header.values.items() if key not in _SPLIT
        }
        return ConvertSource(values, checkpoint, True, lambda: _own_names(checkpoint))
    reasons: list[str] = []
    failures: list[UsageError] = []
    for runtime in runtimes:
        reason = runtime.why_not(checkpoint)
        try:
            exported = runtime.export_as(checkpoint, "gguf") if reason is None else None
        except UsageError as e:
            failures.append(e)
            continue
        if exported is not None:
            values = typed_values(exported.config)
            return ConvertSource(values, exported.weights, False, lambda: _own_names(checkpoint))
        reasons.append(f"{runtime.name}: {reason or 'does not know how GGUF names this model'}")
    if failures:
        raise failures[0]
    if not runtimes:
        raise PluginError(
            "no installed plugin knows how GGUF names a model's weights",
            hint="pip install quantry-transformers",
        )
    raise UsageError(
        f"cannot be named as GGUF does: {'; '.join(reasons)}", file=checkpoint.source.path,
        hint="Make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py, then convert that.",
    )  # fmt: skip


def stored_type(layout: Layout) -> str | None:
    """The GGUF type whose bytes a layout has, None for packings that GGUF lacks."""
    if isinstance(layout, Dense):
        return layout.dtype if layout.dtype != "u8" else None
    return layout.type if isinstance(layout, GgmlBlocks) else None


def present(entry: TensorEntry, own: bool) -> Present:
    """A tensor as llama-quantize would meet it: exported ones as convert_hf_to_gguf.py would write them.

    Raises UsageError for numbers that GGUF lacks.
    """
    found = stored_type(entry.layout)
    if own and found is not None:
        return Present(entry.name, entry.shape, found)
    if isinstance(entry.layout, Dense) and found not in _CASTS:
        raise UsageError(f"is {entry.layout}, which is no weight", tensor=entry.name)
    plain = len(entry.shape) < 2 or entry.name.endswith("_norm.weight") or not entry.name.endswith(".weight")
    if found is None or plain or any(part in entry.name for part in _FLOAT32):
        found = "f32"
    return Present(entry.name, entry.shape, found)


def _own_names(checkpoint: Checkpoint) -> dict[str, str]:
    names = {own: gguf for gguf, own in quantry.model_names(checkpoint, "gguf").items()}
    return {own.removesuffix(".weight"): gguf for own, gguf in names.items()} | names

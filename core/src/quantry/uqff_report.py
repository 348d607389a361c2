"""`uqff_report.json`: which shards make an output and how each layer is stored (mistral.rs,
uqff-format.md)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantry.errors import HeaderError
from quantry.layout import Shape
from quantry.source import Source

__all__ = ["REPORT", "LayerReport", "OutputReport", "read_report", "report_json"]

REPORT = "uqff_report.json"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class LayerReport:
    """How one layer is stored. default_target: the type asked for; resolved_target: after promotion and pins.

    Both are None for layers that were not to be quantized. reason: why `stored` is not `resolved_target`.
    extension: no tag of UQFF stores it; `stored` is the layout's text.
    """

    module: str
    stored: str
    shape: Shape
    default_target: str | None = None
    resolved_target: str | None = None
    reason: str | None = None
    extension: bool = False

    @property
    def is_fallback(self) -> bool:
        """Stored otherwise than resolved. mistral.rs hides fallbacks between ggml types; here they count."""
        return self.reason is not None


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One quantization of the model."""

    quant: str
    shards: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    declared_layers: int | None = None
    declared_counts: Mapping[str, int] | None = None
    """What a report that was read says of itself, right or wrong."""

    @property
    def actual_counts(self) -> dict[str, int]:
        """Layers by stored type, sorted."""
        return dict(sorted(Counter(layer.stored for layer in self.layers).items()))

    @property
    def fallbacks(self) -> tuple[LayerReport, ...]:
        """Layers stored otherwise than resolved."""
        return tuple(layer for layer in self.layers if layer.is_fallback)

    @property
    def note(self) -> str | None:
        """The sentence for whoever wrote layers in the extension, None where every layer has a tag."""
        stored = Counter(layer.stored for layer in self.layers if layer.extension)
        if not stored:
            return None
        kinds = ", ".join(f"{layout} ({n})" for layout, n in sorted(stored.items()))
        return (
            f"{stored.total()} of {len(self.layers)} layers are in Quantry's extension of UQFF, which"
            f" mistral.rs refuses: {kinds}. --portable writes what it reads."
        )

    def as_json(self, details: bool = True) -> dict[str, Any]:
        """The output's object, keys in mistral.rs' order."""
        found: dict[str, Any] = {
            "quant": self.quant,
            "shards": list(self.shards),
            "layers": len(self.layers),
            "actual_counts": self.actual_counts,
            "fallback_count": len(self.fallbacks),
        }
        if (extensions := sum(layer.extension for layer in self.layers)) > 0:
            found["extension_count"] = extensions
        if self.fallbacks:
            found["fallbacks"] = [_fallback(layer) for layer in self.fallbacks]
        if details and self.layers:
            found["layer_details"] = [_layer(layer) for layer in self.layers]
        return found


def report_json(outputs: Iterable[OutputReport], version: str, base_model: str | None = None) -> bytes:
    """The file's bytes."""
    from quantry import __version__

    report: dict[str, Any] = {"schema": _SCHEMA, "generated_by": {"tool": f"quantry {__version__}"}}
    if base_model is not None:
        report["base_model"] = base_model
    report |= {"uqff_version": version, "outputs": [output.as_json() for output in outputs]}
    return json.dumps(report, indent=2, ensure_ascii=False).encode()


def read_report(source: Source) -> list[OutputReport] | None:
    """The outputs a folder's report lists, None without a report. Raises HeaderError for a malformed one."""
    if source.sibling(REPORT) is None:
        return None
    report = source.read_json(REPORT)
    path = source.root / REPORT
    outputs = report.get("outputs") if isinstance(report, dict) else None
    if not isinstance(outputs, list) or not outputs:
        raise HeaderError("lists no outputs", file=path)
    try:
        parsed = [_parse_output(output) for output in outputs]
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise HeaderError(f"an output is malformed: {type(e).__name__}: {e}", file=path) from e
    quants = [output.quant.casefold() for output in parsed]
    shards = [shard for output in parsed for shard in output.shards]
    if len(set(quants)) != len(quants) or "" in quants:
        raise HeaderError("output names are empty or occur twice", file=path)
    if len(set(shards)) != len(shards) or not all(output.shards for output in parsed):
        raise HeaderError("an output has no shards, or two claim one", file=path)
    return parsed


def _parse_output(output: Mapping[str, Any]) -> OutputReport:
    """`layer_details` is optional in the file; a report without them has no layers here."""
    shards, count, counts = output["shards"], output.get("layers"), output.get("actual_counts")
    if not isinstance(shards, list):
        raise TypeError("shards is not a list")
    if count is not None and type(count) is not int:
        raise TypeError("layers is not a number")
    if counts is not None and not (isinstance(counts, dict) and all(type(n) is int for n in counts.values())):
        raise TypeError("actual_counts are not numbers")
    return OutputReport(
        _text(output["quant"]),
        tuple(_text(shard) for shard in shards),
        tuple(
            LayerReport(
                _text(layer["module"]),
                _text(layer["stored"]),
                _sizes(layer["shape"]),
                layer.get("default_target"),
            )
            for layer in output.get("layer_details", [])
        ),
        count,
        counts,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not text")
    return value


def _sizes(value: Sequence[Any]) -> Shape:
    if not isinstance(value, list) or not all(type(n) is int for n in value):
        raise TypeError(f"{str(value)[:40]!r} is not a shape")
    return tuple(value)


def _fallback(layer: LayerReport) -> dict[str, Any]:
    found = {
        "module": layer.module,
        "from": layer.resolved_target,
        "to": layer.stored,
        "shape": list(layer.shape),
        "reason": layer.reason,
    }
    return {key: value for key, value in found.items() if value is not None}


def _layer(layer: LayerReport) -> dict[str, Any]:
    found = {
        "module": layer.module,
        "default_target": layer.default_target,
        "resolved_target": layer.resolved_target,
        "stored": layer.stored,
        "shape": list(layer.shape),
    }
    return {key: value for key, value in found.items() if value is not None}

"""Per-layer pins of an ISQ type: mistral.rs' topology files (mistralrs-core/src/topology)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantry.errors import FormatError, QuantryError, UsageError, nearest

__all__ = ["Pin", "Topology", "layer_of"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk)\.(\d+)(?:\.|$)")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?\Z")
_DEVICE = re.compile(r"cpu\Z|(cuda|metal|mps)(?:\[(\d{1,3})\]|:(\d{1,3}))?\Z")
_KEYS = ("isq", "device")


@dataclass(frozen=True, slots=True)
class Pin:
    """One entry: a regex or a range of layers, start included and end not, with a type, a device or both.

    device: as torch names it ("cuda:0"). where: of the entry, for errors.
    """

    selector: str
    isq: str | None = None
    device: str | None = None
    regex: re.Pattern[str] | None = None
    start: int = 0
    end: int = 0
    file: str | None = None
    line: int | None = None

    @property
    def where(self) -> str:
        """The entry as its file shows it."""
        at = "" if self.line is None else f"line {self.line}: "
        return f"{at}topology entry {self.selector!r}"

    def refuse(self, problem: str, hint: str | None = None) -> UsageError:
        """An error about this entry."""
        return UsageError(f"{self.where} {problem}", file=self.file, hint=hint)

    def takes(self, name: str) -> bool:
        """Whether it speaks of a tensor."""
        if self.regex is not None:
            return self.regex.search(name) is not None
        layer = layer_of(name)
        return layer is not None and self.start <= layer < self.end


@dataclass(frozen=True, slots=True)
class Topology:
    """Pins by regex and by layer range. Regexes beat ranges, a later regex an earlier one."""

    pins: tuple[Pin, ...] = ()

    def __post_init__(self) -> None:
        for field in _KEYS:
            ranges = [p for p in self.pins if p.regex is None and getattr(p, field) is not None]
            ranges.sort(key=lambda p: p.start)
            for first, second in itertools.pairwise(ranges):
                if second.start < first.end:
                    raise second.refuse(
                        f"overlaps {first.selector!r}: both name a {field} for layer {second.start}",
                        hint="An end is exclusive: `0-4` are layers 0 to 3.",
                    )

    @classmethod
    def of(cls, spec: Topology | Mapping[str, Any] | str | Path | None) -> Topology:
        """From a YAML file or its parsed content: selector → type, or → {"isq": type, "device": …}.

        Selectors: `3` one layer, `0-4` layers 0 to 3, `/regex/` searched in the tensor's name. Devices:
        `cpu`, `cuda[0]`, `metal[0]`. Raises FormatError for a malformed file, UsageError for a malformed
        entry; both name the line.
        """
        if spec is None or isinstance(spec, Topology):
            return spec or cls()
        if isinstance(spec, Mapping):
            return cls(tuple(_pin(str(key), value, None, None) for key, value in spec.items()))
        return cls(tuple(_read_yaml(Path(spec))))

    def pin(self, name: str) -> str | None:
        """The type pinned for a tensor, None when the default holds.

        >>> Topology.of({"0-2": "q8_0", "/down_proj/": "q6k"}).pin("model.layers.1.mlp.down_proj.weight")
        'q6k'
        """
        return self._found(name, "isq")

    def device(self, name: str) -> str | None:
        """The device pinned for a tensor, as torch names it."""
        return self._found(name, "device")

    def _found(self, name: str, field: str) -> str | None:
        taking = [p for p in self.pins if getattr(p, field) is not None and p.takes(name)]
        regexes = [p for p in taking if p.regex is not None]
        found: str | None = getattr((regexes or taking)[-1], field) if taking else None
        return found


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, by its name: the first `layers.N`, `h.N` or `blk.N`."""
    match = _LAYER.search(name)
    return None if match is None else int(match[1])


def _read_yaml(path: Path) -> list[Pin]:
    """Pins of a file, each with its line; the tree is read, not what YAML would build from it."""
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror or e}", file=path) from e
    except UnicodeDecodeError as e:
        raise FormatError(f"is not UTF-8 text: {e.reason} at byte {e.start}", file=path) from e
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        build = yaml.SafeLoader("")
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise FormatError(f"line {root.start_mark.line + 1}: must map selectors to types", file=path)
        found: list[Pin] = []
        lines: dict[str, int] = {}
        for key, value in root.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise FormatError(f"line {line}: a selector is text, not a list or mapping", file=path)
            selector = key.value
            if selector in lines:
                raise FormatError(
                    f"line {line}: selector {selector!r} stands in line {lines[selector]} already", file=path
                )
            lines[selector] = line
            found.append(_pin(selector, build.construct_object(value, deep=True), path, line))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = "" if mark is None else f"line {mark.line + 1}: "
        raise FormatError(f"{at}is not YAML: {getattr(e, 'problem', None) or e}", file=path) from e
    except (RecursionError, ValueError) as e:  # nested too deep; a date or number that is none
        if isinstance(e, QuantryError):
            raise
        raise FormatError(f"is not YAML that can be read: {e}", file=path) from e
    return found


def _pin(selector: str, value: Any, file: Path | None, line: int | None) -> Pin:
    plain = Pin(selector, file=None if file is None else str(file), line=line)
    fields = value if isinstance(value, Mapping) else {"isq": value}
    for key in fields:
        if key not in _KEYS:
            raise plain.refuse(f"has the unknown key {key!r}", hint=nearest(str(key), _KEYS))
    if not fields or all(v is None for v in fields.values()):
        raise plain.refuse("names neither a type nor a device", hint="For example `isq: q4k`.")
    isq, device = fields.get("isq"), fields.get("device")
    if isinstance(isq, bool) or not isinstance(isq, (str, int, type(None))):
        raise plain.refuse(f"names {isq!r}, which is no type", hint="For example `isq: q4k`.")
    start = end = 0
    regex = None
    if len(selector) > 1 and selector.startswith("/") and selector.endswith("/"):
        try:
            regex = re.compile(selector[1:-1])
        except re.error as e:
            raise plain.refuse(f"is no regular expression: {e}") from e
    else:
        start, end = _range(selector, plain)
    return Pin(
        selector, None if isq is None else str(isq), None if device is None else _device(device, plain),
        regex, start, end, plain.file, line,
    )  # fmt: skip


def _range(text: str, pin: Pin) -> tuple[int, int]:
    match = _RANGE.match(text)
    if match is None:
        raise pin.refuse("is none of `n`, `a-b`, `/regex/`")
    start = int(match[1])
    end = int(match[2]) if match[2] else start + 1
    if end <= start:
        raise pin.refuse("is empty: the end is exclusive")
    return start, end


def _device(value: object, pin: Pin) -> str:
    """As torch names it: mistral.rs writes `cuda[1]` and `metal`."""
    match = _DEVICE.match(str(value))
    if match is None:
        raise pin.refuse(f"names the device {value!r}", hint="Devices: cpu, cuda[0], metal[0].")
    if match[1] is None:
        return "cpu"
    kind = "mps" if match[1] == "metal" else match[1]
    return f"{kind}:{int(match[2] or match[3] or 0)}"

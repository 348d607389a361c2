"""Per-layer pins of an ISQ type: mistral.rs' topology files (mistralrs-core/src/topology)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantry.errors import FormatError, UsageError

__all__ = ["Topology"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)(?:\.|$)")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?\Z")


@dataclass(frozen=True, slots=True)
class Topology:
    """Pins by regex and by layer range. Regexes beat ranges, a later regex an earlier one."""

    regexes: tuple[tuple[re.Pattern[str], str], ...] = ()
    ranges: tuple[tuple[int, int, str], ...] = ()

    @classmethod
    def of(cls, spec: Topology | Mapping[str, Any] | str | Path | None) -> Topology:
        """From a YAML file or its parsed content: selector → type, or → {"isq": type, "device": …}.

        Selectors: `3` one layer, `0-4` layers 0 to 3, `/regex/` searched in the tensor's name.
        Raises FormatError for a malformed file, UsageError for a malformed selector.
        """
        if spec is None or isinstance(spec, Topology):
            return spec or cls()
        mapping = spec if isinstance(spec, Mapping) else _read_yaml(Path(spec))
        regexes: list[tuple[re.Pattern[str], str]] = []
        ranges: list[tuple[int, int, str]] = []
        for selector, value in mapping.items():
            isq = value.get("isq") if isinstance(value, Mapping) else value
            if isq is None:
                continue  # such an entry only names a device
            key, target = str(selector), str(isq)
            if len(key) > 1 and key.startswith("/") and key.endswith("/"):
                regexes.append((_regex(key[1:-1]), target))
            else:
                ranges.append((*_range(key), target))
        return cls(tuple(regexes), tuple(ranges))

    def pin(self, name: str) -> str | None:
        """The type pinned for a tensor, None when the default holds.

        >>> Topology.of({"0-2": "q8_0", "/down_proj/": "q6k"}).pin("model.layers.1.mlp.down_proj.weight")
        'q6k'
        """
        for pattern, target in reversed(self.regexes):
            if pattern.search(name):
                return target
        layer = _LAYER.search(name)
        if layer is None:
            return None
        number = int(layer[1])
        found = [
            (end, i, target) for i, (start, end, target) in enumerate(self.ranges) if start <= number < end
        ]
        return max(found)[2] if found else None


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror or e}", file=path) from e
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise FormatError(f"is not YAML: {e}", file=path) from e
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise FormatError("must map selectors to types", file=path)
    return parsed


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as e:
        raise UsageError(f"topology selector /{text}/ is no regular expression: {e}") from e


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.match(text)
    if match is None:
        raise UsageError(f"topology selector {text!r} is none of `n`, `a-b`, `/regex/`")
    start = int(match[1])
    end = int(match[2]) if match[2] else start + 1
    if end <= start:
        raise UsageError(f"topology selector {text!r} is empty: the end is exclusive")
    return start, end

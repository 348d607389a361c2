"""`quantry.verify`: every structural fault of a checkpoint, without loading its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantry.errors import FormatError, PluginError, QuantryError, ShapeError
from quantry.format import Detection, Format
from quantry.source import Source
from quantry.uqff_shards import outputs

__all__ = ["Problem", "verify"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. tensor: "" when it concerns the whole file."""

    file: str
    tensor: str
    problem: str


def verify(path: str | Path, strict: bool = False) -> list[Problem]:
    """The faults of a GGUF, UQFF or safetensors checkpoint; [] when it is sound.

    strict: also what readers forgive (UQFF: missing report or producer, fallback layers; safetensors: a stale
    index). A folder with several UQFF outputs is checked output by output. Raises UsageError when there is
    nothing to check.
    """
    source = Source.open(path)
    found: dict[Problem, None] = {}  # each once, in order
    for target in _targets(source):
        found |= dict.fromkeys(_problems(target, strict))
    return list(found)


def _targets(source: Source) -> list[Source]:
    """The source, or one source per output of a UQFF folder that holds several."""
    if source.is_file or not source.with_suffix(".uqff"):
        return [source]
    try:
        shards = [names[0] for names in outputs(source).values()]
    except FormatError:
        return [source]  # a broken report; reading it says so again
    present = [source.root / name for name in shards if source.sibling(name) is not None]
    return [Source(path) for path in present] if len(present) > 1 else [source]


def _problems(source: Source, strict: bool) -> Iterator[Problem]:
    from quantry.plugins import registry

    best: tuple[int, Format, Detection] | None = None
    for format in registry().formats:
        try:
            detection = format.detect(source)
        except (FormatError, ShapeError) as e:
            yield _problem(e, source)
            return
        if detection is not None and (best is None or detection.confidence > best[0]):
            best = (detection.confidence, format, detection)
    if best is None:
        yield Problem(source.path.name, "", "no installed format recognises it")
        return
    _, format, detection = best
    yield from _structure(source, format, detection)
    try:
        for file, tensor, problem in format.verify(source, detection, strict):
            yield Problem(Path(file).name, tensor, problem)
    except (FormatError, ShapeError, PluginError) as e:
        yield _problem(e, source)


def _structure(source: Source, format: Format, detection: Detection) -> Iterator[Problem]:
    """What listing the entries raises, and names that occur twice."""
    seen: set[str] = set()
    try:
        for entry in format.entries(source, detection):
            if entry.name in seen:
                yield Problem(source.path.name, entry.name, "occurs twice")
            seen.add(entry.name)
    except (FormatError, ShapeError, PluginError) as e:
        yield _problem(e, source)


def _problem(error: QuantryError, source: Source) -> Problem:
    return Problem(Path(error.file or source.path).name, error.tensor or "", error.problem)

"""Files of importance: read in any installed format, written in the one that the suffix names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantry.checkpoint import Checkpoint, open_checkpoint
from quantry.errors import FormatError, ShapeError, UsageError, ValueDomainError
from quantry.importance import Importance, ImportanceFormat, check_importance
from quantry.plugins import registry
from quantry.stream import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SafetensorsImportance",
    "importance_by_weight",
    "importance_format",
    "model_names",
    "read_importance",
    "write_importance",
]

_HEAD_BYTES = 64  # shown to each format, which tells by them whether a file is its own


class SafetensorsImportance(ImportanceFormat):
    """A safetensors file of one vector or one matrix a weight."""

    name = "safetensors"
    suffixes = (".safetensors",)

    def detect(self, path: Path, head: bytes) -> bool:
        """By its suffix."""
        return path.suffix == ".safetensors"

    def read(self, path: Path) -> Importance:
        """Values as they are stored; nothing is known of counts and chunks."""
        ckpt = open_checkpoint(path)
        return Importance({name: ckpt[name].dequantize() for name in ckpt.names()})

    def write(self, path: Path, importance: Importance) -> None:
        """One float32 tensor a weight."""
        write_safetensors(path, {name: t.float().contiguous() for name, t in importance.weights.items()})


def read_importance(path: str | Path, model: Checkpoint | None = None) -> Importance:
    """What a file of any installed format holds, under the names of the model's weights if it is given.

    Raises UsageError for a file that cannot be read or is of no installed format, FormatError for one that
    is damaged, ValueDomainError for negative values, NaN and Inf.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            head = f.read(_HEAD_BYTES)
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror or e}", file=path) from e
    known = registry().importance_formats
    for fmt in known:
        if not fmt.detect(path, head):
            continue
        try:
            found = fmt.read(path)
        except (FormatError, ShapeError, ValueDomainError) as e:
            e.file = e.file or str(path)
            raise
        return found if model is None else _renamed(found, model_names(model, fmt.convention))
    raise UsageError(
        "is no importance file of an installed kind", file=path,
        hint=f"Known: {', '.join(fmt.name for fmt in known)}; pip install quantry-gguf for llama.cpp's.",
    )  # fmt: skip


def importance_format(path: str | Path) -> ImportanceFormat:
    """The format in which a file of this name is written. Raises UsageError for an ending that none has."""
    path, known = Path(path), registry().importance_formats
    fmt = next((fmt for fmt in known if path.suffix in fmt.suffixes), None)
    if fmt is None:
        endings = ", ".join(ending for fmt in known for ending in fmt.suffixes)
        raise UsageError(f"no installed format of importance ends in {path.suffix!r}", file=path,
                         hint=f"Known endings: {endings}.")  # fmt: skip
    return fmt


def write_importance(path: str | Path, importance: Importance, model: Checkpoint | None = None) -> None:
    """Write a file in the format that its suffix names; `model` knows the names that the format wants.

    Weights that the format has no name for are an error: UsageError names the first.
    """
    fmt = importance_format(path)
    if model is not None and fmt.convention is not None:
        back = {ours: theirs for theirs, ours in model_names(model, fmt.convention).items()}
        missing = next((name for name in importance.weights if name not in back), None)
        if missing is not None:
            raise UsageError(f"{fmt.name} files have no name for it", file=path, tensor=missing,
                             hint="Write to a .cimatrix or .safetensors file.")  # fmt: skip
        importance = _renamed(importance, back)
    fmt.write(Path(path), importance)


def importance_by_weight(
    importance: Mapping[str, Tensor],
    weights: Collection[str],
    others: Callable[[], Mapping[str, str]] | None = None,
) -> dict[str, Tensor]:
    """The same values under names of `weights`, given with or without `.weight`, or as `others` has them.

    others: gives other names of weights → theirs in `weights`; asked once, when it is needed. Raises
    UsageError naming the first weight that the model lacks, ValueDomainError for values that are none.
    """
    found: dict[str, Tensor] = {}
    known: Mapping[str, str] | None = None
    for name, values in importance.items():
        check_importance(name, values)
        own = name if name in weights else f"{name}.weight"
        if own not in weights:
            if known is None:
                known = {} if others is None else others()
            own = known.get(name, "")
        if own not in weights:
            raise UsageError("there is importance for it, but the model has no such weight", tensor=name,
                             hint="The file belongs to another model.")  # fmt: skip
        found[own] = values
    return found


def model_names(model: Checkpoint, convention: str | None = None) -> dict[str, str]:
    """Another convention's name of a weight → the model's; convention None: of every one that is known."""
    found: dict[str, str] = {}
    for runtime in registry().runtimes:
        if runtime.why_not(model) is None:
            for kind in runtime.conventions if convention is None else (convention,):
                found |= runtime.other_names(model, kind)
    return found


def _renamed(importance: Importance, names: Mapping[str, str]) -> Importance:
    def under(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {names.get(name, name): tensor for name, tensor in values.items()}

    return Importance(
        under(importance.weights), under(importance.counts), importance.chunks, importance.chunk_tokens,
        importance.datasets,
    )  # fmt: skip

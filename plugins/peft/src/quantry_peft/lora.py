"""The folder that peft's `save_pretrained` writes for a LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry import Adapter, AdapterFormat, DuplicateTensor, FormatError, LowRank, ShapeError, UsageError
from quantry_peft.config import CONFIG, LoraConfig, read_config

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHTS", "PeftLora"]

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

_PREFIX = "base_model.model."
# lora_A.weight, lora_A.NAME.weight, lora_embedding_A, lora_embedding_A.NAME
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<half>[AB])(\.[^.]+)?(?(table)|\.weight)")
# other parts of a saved adapter → what they belong to
_REFUSED = {
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "biases of lora_B",
    "modules_to_save": "whole modules beside the LoRA",
    "trainable_tokens": "trained tokens",
}
_COPY = ".base_layer.weight"  # saved beside adapted embeddings, and frozen as every base layer


class _Key(NamedTuple):
    module: str
    half: str
    table: bool


class PeftLora(AdapterFormat):
    """`adapter_config.json` and `adapter_model.safetensors` of a LoRA; names are the model's own.

    `lora_A` [r, in], `lora_B` [out, r]; of an embedding `lora_embedding_A` [r, rows], `lora_embedding_B`
    [width, r]. Times lora_alpha / r, or / √r with use_rslora, by rank_pattern and alpha_pattern where given.
    Source: peft 0.21 tuners/lora/layer.py, utils/save_and_load.py.
    """

    name: ClassVar[str] = "peft"

    def why_not(self, path: Path) -> str | None:
        """None for a folder with `adapter_config.json`."""
        if path.is_file():
            return f"is a file, not a folder with {CONFIG}"
        return None if (path / CONFIG).is_file() else f"holds no {CONFIG}"

    def read(self, path: Path) -> Adapter:
        """Never reads pickled weights."""
        config = read_config(path / CONFIG)
        file = _weights(path)
        pairs: dict[str, dict[str, tuple[str, Tensor]]] = {}
        tables = set()
        copies = []
        for name, tensor in _tensors(file):
            if name.endswith(_COPY):
                copies.append(name)
                continue
            key = _parse(name, file)
            halves = pairs.setdefault(key.module, {})
            if key.half in halves:
                raise DuplicateTensor(f"is also there as {halves[key.half][0]!r}", file=file, tensor=name)
            halves[key.half] = name, tensor
            if key.table:
                tables.add(key.module)
        for name in copies:
            if name.removeprefix(_PREFIX).removesuffix(_COPY) not in pairs:
                raise UsageError("is a whole weight, not a change of one", file=file, tensor=name)
        if not pairs:
            raise FormatError("changes no weight", file=file)
        parts = {
            f"{module}.weight": _part(module, halves, module in tables, config, file)
            for module, halves in pairs.items()
        }
        return Adapter(path, parts)


def _weights(path: Path) -> Path:
    file = path / WEIGHTS
    if file.is_file():
        return file
    if (path / PICKLED).exists():
        raise UsageError(
            f"has its weights as {PICKLED}, a pickle, which is never read", file=path,
            hint="Load it with peft where you trust it; its save_pretrained writes safetensors.",
        )  # fmt: skip
    raise FormatError(f"holds no {WEIGHTS}", file=path)


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  not a mapping
                yield name, stored.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as e:
        raise FormatError(f"is no safetensors file: {e}", file=file) from e


def _parse(name: str, file: Path) -> _Key:
    for part, what in _REFUSED.items():
        if part in name:
            problem = f"belongs to {what}, which cannot be added beside packed weights"
            raise UsageError(problem, file=file, tensor=name)
    match = _HALF.fullmatch(name.removeprefix(_PREFIX))
    if match is None or not name.startswith(_PREFIX):
        raise FormatError(f"is no lora_A or lora_B below {_PREFIX!r}", file=file, tensor=name)
    return _Key(match["module"], match["half"], match["table"] is not None)


def _part(
    module: str, halves: Mapping[str, tuple[str, Tensor]], table: bool, config: LoraConfig, file: Path
) -> LowRank:
    for half, other in (("A", "B"), ("B", "A")):
        if half not in halves:
            there = halves[other][0]
            head, _, tail = there.rpartition(f"_{other}")
            raise FormatError(f"is missing, {there!r} is there", file=file, tensor=f"{head}_{half}{tail}")
    (a_name, a), (b_name, b) = halves["A"], halves["B"]
    if table and a.dim() == b.dim() == 2:  # rows of the table are columns of A
        change = LowRank(b.mT, a.mT, config.scale_of(module)).check(file, (b_name, a_name))
    else:
        change = LowRank(a, b, config.scale_of(module)).check(file, (a_name, b_name))
    if change.rank != config.rank_of(module):
        problem = f"has rank {change.rank}, {CONFIG} says {config.rank_of(module)}"
        raise ShapeError(problem, file=file, tensor=a_name)
    return change

"""What the mixes are compared by: models, file types and options, and the short form of a file's types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gguf_models import MODELS

from quantry_gguf.mixes import FILE_TYPES

GOLDEN = Path(__file__).parent / "fixtures" / "mixes.json"
_LARGE = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_M", "Q5_K_M", "IQ4_XS", "IQ2_M", "IQ3_XS")
_NEEDLESS = (  # of importance: the rules alone do not refuse
    "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K",
    "IQ3_S", "IQ3_M", "IQ4_XS", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0",
)  # fmt: skip
_WITH_OPTIONS = (
    "llama of groups of 4",
    "llama without groups, tied",
    "mixtral, 8 experts",
    "kept tensors",
)
_OPTIONS: dict[str, dict[str, Any]] = {
    "pure": {"pure": True},
    "output q8_0": {"output": "q8_0"},
    "embedding q4_0": {"embedding": "q4_0"},
    "both, pure": {"output": "q5_k", "embedding": "q3_k", "pure": True},
    "overrides": {"overrides": (("ffn_(up|gate)", "q8_0"), ("ffn", "iq4_nl"), ("^blk.[01].attn_v", "f16"))},
    "overridden embedding": {"overrides": (("embd", "q8_0"),), "embedding": "q4_0"},
}


class Case(NamedTuple):
    """One file that llama.cpp made, or refused to."""

    model: str
    file: str
    importance: bool
    options: str = ""

    @property
    def key(self) -> str:
        return " ".join((self.file, "with importance" if self.importance else "", self.options)).strip()

    @property
    def arguments(self) -> dict[str, Any]:
        return _OPTIONS.get(self.options, {})


def cases() -> list[Case]:
    """Every file type, with and without importance, for small models; some for large ones; all options."""
    found = [
        Case(name, t.name, importance)
        for name, model in MODELS.items()
        for t in FILE_TYPES
        if not model.no_file
        if model.values["block_count"] < 80 or t.name in _LARGE
        for importance in (False, True)
        if not (importance and t.is_dense)
    ]
    found += [Case(n, file, False) for n, model in MODELS.items() if model.no_file for file in _NEEDLESS]
    found += [
        Case(name, file, True, options)
        for name in _WITH_OPTIONS
        for file in ("Q4_K_M", "IQ3_XXS", "Q4_0", "BF16")
        for options in _OPTIONS
        if not (file == "BF16" and "overrid" in options)
    ]
    return found


def short(types: Mapping[str, str]) -> dict[str, str]:
    """Name without the block's number → the types of all blocks in order, runs as `q4_k*3`.

    Kinds that are float32 everywhere are left out, as the source is.
    """
    kinds: dict[str, list[str]] = {}
    for name, type in types.items():
        parts = name.split(".")
        kind = ".".join(p for p in parts if not p.isdecimal()) if parts[0] == "blk" else name
        kinds.setdefault(kind, []).append(type)
    return {
        kind: " ".join(f"{t}*{n}" if (n := len(list(run))) > 1 else t for t, run in groupby(found))
        for kind, found in sorted(kinds.items())
        if set(found) != {"f32"}
    }


def golden() -> dict[str, dict[str, dict[str, str] | None]]:
    """Model → case → what llama.cpp gave in short form; None where it refused."""
    found: dict[str, dict[str, dict[str, str] | None]] = json.loads(GOLDEN.read_text())
    return found

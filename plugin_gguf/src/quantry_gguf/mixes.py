"""Which type each tensor of a file gets: llama.cpp's mixes, as tables.

Source: llama.cpp src/llama-quant.cpp, `llama_tensor_get_type_impl` and its neighbours (the copy inside
llama-cpp-python 0.3.36). A rule is a row: for these file types, where this holds, that tensor type; the first
row that fits counts, none: the file's base type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from quantry import UsageError, canonical_name, nearest

__all__ = [
    "EMBEDDINGS",
    "FILE_TYPES",
    "HEAD",
    "FileType",
    "Model",
    "Place",
    "file_type",
    "head_type",
    "kind_of",
    "needs_importance",
    "rule_type",
]


class FileType(NamedTuple):
    """What `--type` names: its id in `general.file_type`, the type that most tensors get."""

    name: str
    id: int
    base: str

    @property
    def is_dense(self) -> bool:
        """Whether it is a cast: no mix, no importance."""
        return self.base in ("f32", "f16", "bf16")


FILE_TYPES = (
    FileType("F32", 0, "f32"), FileType("F16", 1, "f16"), FileType("BF16", 32, "bf16"),
    FileType("Q4_0", 2, "q4_0"), FileType("Q4_1", 3, "q4_1"), FileType("Q5_0", 8, "q5_0"),
    FileType("Q5_1", 9, "q5_1"), FileType("Q8_0", 7, "q8_0"),
    FileType("Q2_K", 10, "q2_k"), FileType("Q2_K_S", 21, "q2_k"),
    FileType("Q3_K_S", 11, "q3_k"), FileType("Q3_K_M", 12, "q3_k"), FileType("Q3_K_L", 13, "q3_k"),
    FileType("Q4_K_S", 14, "q4_k"), FileType("Q4_K_M", 15, "q4_k"),
    FileType("Q5_K_S", 16, "q5_k"), FileType("Q5_K_M", 17, "q5_k"), FileType("Q6_K", 18, "q6_k"),
    FileType("IQ1_S", 24, "iq1_s"), FileType("IQ1_M", 31, "iq1_m"),
    FileType("IQ2_XXS", 19, "iq2_xxs"), FileType("IQ2_XS", 20, "iq2_xs"),
    FileType("IQ2_S", 28, "iq2_xs"), FileType("IQ2_M", 29, "iq2_s"),
    FileType("IQ3_XXS", 23, "iq3_xxs"), FileType("IQ3_XS", 22, "iq3_s"),
    FileType("IQ3_S", 26, "iq3_s"), FileType("IQ3_M", 27, "iq3_s"),
    FileType("IQ4_NL", 25, "iq4_nl"), FileType("IQ4_XS", 30, "iq4_xs"),
    FileType("TQ1_0", 36, "tq1_0"), FileType("TQ2_0", 37, "tq2_0"), FileType("MXFP4_MOE", 38, "mxfp4"),
    FileType("Q1_0", 40, "q1_0"), FileType("Q2_0", 41, "q2_0"),
)  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def file_type(name: str) -> FileType:
    """The file type that a user names; case, `_`, `-` do not matter. Raises UsageError for no such type."""
    known = {canonical_name(t.name): t for t in FILE_TYPES}
    known |= {canonical_name(alias): known[canonical_name(full)] for alias, full in _ALIASES.items()}
    found = known.get(canonical_name(name))
    if found is None:
        hint = nearest(name.upper(), (t.name for t in FILE_TYPES))
        raise UsageError(f"there is no GGUF file type {name!r}", hint=hint)
    return found


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules ask of a model.

    blocks: layers. group: query heads that share a key-value head. experts: of a layer, 0 where there are
    none. is_70b: one of the 80-layer shapes whose attn_v is small. tied: the output head is the embedding.
    """

    arch: str
    blocks: int
    group: int
    experts: int
    is_70b: bool
    tied: bool
    importance: bool


class Place(NamedTuple):
    """A tensor's place among those of its kind: number `i` of `n`, of which `model`."""

    i: int
    n: int
    model: Model


def _always(p: Place) -> bool:
    return True


def _shared(p: Place) -> bool:
    return p.model.group >= 4


def _shared_or_experts(p: Place) -> bool:
    return p.model.group >= 4 or p.model.experts >= 4


def _eight_experts(p: Place) -> bool:
    return p.model.experts == 8


def _not_eight_experts(p: Place) -> bool:
    return p.model.experts != 8


def _blind(p: Place) -> bool:
    return not p.model.importance


def _informed(p: Place) -> bool:
    return p.model.importance


def _first_two(p: Place) -> bool:
    return p.i < 2


def _first_four(p: Place) -> bool:
    return p.i < 4


def _first_16th(p: Place) -> bool:
    return p.i < p.n // 16


def _first_8th(p: Place) -> bool:
    return p.i < p.n // 8


def _middle(p: Place) -> bool:
    return p.n // 8 <= p.i < 7 * p.n // 8


def _more(p: Place) -> bool:
    """The first and last eighth, and every third between."""
    return not _middle(p) or (p.i - p.n // 8) % 3 == 2


def _both(one: Callable[[Place], bool], other: Callable[[Place], bool]) -> Callable[[Place], bool]:
    return lambda p: one(p) and other(p)


class _Rule(NamedTuple):
    files: str  # names of file types, by blanks; "" any
    holds: Callable[[Place], bool]
    type: str


_LOW = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
_LOW_RULES = {
    "v": (
        _Rule("", _shared_or_experts, "q4_k"), _Rule("IQ2_S IQ2_M", _always, "iq3_s"),
        _Rule("", _always, "q2_k"),
    ),
    "k": (_Rule("", _eight_experts, "q4_k"),),
    "down": (_Rule("IQ2_S IQ2_M", _first_8th, "iq3_s"), _Rule("", _first_8th, "q2_k")),
    "output": (
        _Rule("", _eight_experts, "q5_k"), _Rule("IQ1_S IQ1_M", _always, "iq2_xxs"),
        _Rule("IQ2_S IQ2_M", _always, "iq3_s"),
    ),
}  # fmt: skip
_NARROWER = (_Rule("IQ3_XS", _always, "iq3_xxs"), _Rule("IQ3_XXS", _always, "iq2_s"))
_RULES = {
    "v": (
        _Rule("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", _shared, "q4_k"), _Rule("Q2_K", _always, "q3_k"),
        _Rule("IQ3_XXS", _blind, "iq3_s"), _Rule("IQ3_M", _always, "q4_k"),
        _Rule("Q3_K_M", _first_two, "q5_k"), _Rule("Q3_K_M", _always, "q4_k"),
        _Rule("Q3_K_L", _always, "q5_k"), _Rule("IQ4_NL IQ4_XS", _shared, "q5_k"),
        _Rule("Q4_K_M Q5_K_M", _more, "q6_k"), _Rule("Q4_K_S", _first_four, "q5_k"),
    ),
    "k": (_Rule("", _eight_experts, "q8_0"), *_NARROWER),
    "q": _NARROWER,
    "down": (
        _Rule("Q2_K", _always, "q3_k"), _Rule("Q2_K_S", _first_8th, "q4_k"),
        _Rule("IQ3_XXS", _both(_blind, _first_8th), "q4_k"), _Rule("IQ3_XXS", _blind, "q3_k"),
        _Rule("Q3_K_M", _first_16th, "q5_k"), _Rule("Q3_K_M", _always, "q4_k"),
        _Rule("IQ3_M", _first_8th, "q4_k"), _Rule("IQ3_M", _both(_eight_experts, _more), "q4_k"),
        _Rule("Q3_K_L", _always, "q5_k"), _Rule("Q4_K_M Q5_K_M", _more, "q6_k"),
        _Rule("IQ4_NL IQ4_XS", _both(_blind, _first_8th), "q5_k"), _Rule("Q4_K_S", _first_8th, "q5_k"),
        _Rule("Q4_0", _both(_informed, _first_8th), "q4_1"),
        _Rule("Q5_0", _both(_informed, _first_8th), "q5_1"),
    ),
    "output": (
        _Rule(
            "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS",
            _eight_experts, "q5_k",
        ),
        _Rule("Q2_K", _not_eight_experts, "q3_k"), _Rule("IQ3_XXS", _not_eight_experts, "iq3_s"),
        _Rule("Q3_K_M IQ3_M", _not_eight_experts, "q4_k"), _Rule("Q3_K_L", _not_eight_experts, "q5_k"),
    ),
    "gate": (_Rule("IQ3_XS", _middle, "iq3_xxs"),),
    "up": (_Rule("IQ3_XS", _middle, "iq3_xxs"),),
}  # fmt: skip
_OF_ARCH = {
    "falcon": {
        **_RULES,
        "down": (
            _Rule("Q3_K_M", _first_16th, "q5_k"), _Rule("Q3_K_M", _more, "q4_k"),
            _Rule("Q3_K_M", _always, "q3_k"), _Rule("Q3_K_L", _always, "q4_k"),
            _Rule("Q4_K_M", _first_16th, "q6_k"), _Rule("Q4_K_M", _more, "q5_k"),
            _Rule("Q4_K_M Q4_K_S", _always, "q4_k"), *_RULES["down"],
        ),
        "output": (_Rule("Q3_K_L", _always, "q4_k"),),
    },
}  # fmt: skip

# kinds of tensors by a part of their names, first match
_KINDS = {
    "attn_qkv.weight": "v", "attn_kv_b.weight": "v", "attn_v.weight": "v", "attn_k.weight": "k",
    "attn_q.weight": "q", "attn_output.weight": "output", "ffn_up": "up", "ffn_gate": "gate",
    "ffn_down": "down",
}  # fmt: skip
HEAD, EMBEDDINGS = "output.weight", ("token_embd.weight", "per_layer_token_embd.weight")

_SMALL_HEADS = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS"
_EMBEDDING_RULES = (
    _Rule("IQ1_S IQ1_M IQ2_XXS IQ2_XS", _always, "q2_k"), _Rule("IQ2_S IQ2_M IQ3_XXS", _always, "iq3_s"),
    _Rule("TQ1_0 TQ2_0 Q2_0", _always, "q4_k"),
)  # fmt: skip
_NEED_IMPORTANCE = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs")


def kind_of(name: str) -> str:
    """ "head", "embedding", a kind that rules are about, or ""."""
    if name == HEAD:
        return "head"
    if name in EMBEDDINGS:
        return "embedding"
    return next((kind for part, kind in _KINDS.items() if part in name), "")


def rule_type(file: FileType, kind: str, place: Place) -> str:
    """The type of a tensor of this kind and place, before its shape is looked at."""
    if kind == "embedding":
        return _first(_EMBEDDING_RULES, file, place)
    if file.name in _LOW.split():
        return _first(_LOW_RULES.get(kind, ()), file, place)
    found = _first(_OF_ARCH.get(place.model.arch, _RULES).get(kind, ()), file, place)
    if kind == "v" and place.model.is_70b and found in ("q3_k", "q4_k"):
        found = "q5_k"
    return "q8_0" if kind == "v" and place.model.experts == 8 else found


def head_type(file: FileType, whole_blocks: bool, arch: str) -> str:
    """The type of the output head. whole_blocks: its columns are a multiple of the base type's block."""
    if file.name == "MXFP4_MOE" or arch == "falcon" or not whole_blocks:
        return "q8_0"
    if file.name in _SMALL_HEADS.split():
        return "q5_k"
    return "q8_0" if file.base == "q8_0" else "q6_k"


def needs_importance(name: str, type: str, file: FileType) -> bool:
    """Whether a tensor of this type is useless where nobody knows which columns count."""
    if kind_of(name) in ("head", "embedding"):
        return False
    return type in _NEED_IMPORTANCE or (type == "q2_k" and file.name == "Q2_K_S")


def _first(rules: Iterable[_Rule], file: FileType, place: Place) -> str:
    for rule in rules:
        if (not rule.files or file.name in rule.files.split()) and rule.holds(place):
            return rule.type
    return file.base

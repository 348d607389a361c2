"""The type of every tensor of a file: what stays as it is, what options say, rules, shapes that do not fit.

Source: llama.cpp src/llama-quant.cpp, `tensor_allows_quantization`, `llama_tensor_get_type`,
`tensor_type_fallback`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from quantry import HeaderError, UsageError, canonical_name, nearest
from quantry_gguf.mixes import (
    HEAD,
    FileType,
    Model,
    Place,
    head_type,
    kind_of,
    needs_importance,
    rule_type,
)
from quantry_gguf.types import BY_NAME, GgmlType

__all__ = ["Chosen", "Present", "TypeOptions", "choose_types", "model_of", "tensor_type", "visit_order"]

_KEPT = (  # parts of names of what is never quantized
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_",
    ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
    *(f"time_mix_{part}.weight" for part in (
        "first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2",
        "lerp_fused",
    )),
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_KEPT_OF_ARCH = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
_Q8_OF_ARCH = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
_MXFP4_BY_KIND = ("bailingmoe3",)  # other 3-D tensors than experts are Q8_0 there

_SMALLER_BLOCK = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_k", "q3_k", "q2_0", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
_NOT_FOR_WEIGHTS = ("q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64")
# models that llama.cpp takes for one of 70 B parameters by their number of blocks (src/models/*.cpp)
_BLOCKS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
_BLOCK = re.compile(r"blk\.(\d+)")
_FFN = ("down", "gate", "up")


class Present(NamedTuple):
    """A tensor as it is before: shape outermost dimension first, `type` a name of the type table."""

    name: str
    shape: tuple[int, ...]
    type: str


class Chosen(NamedTuple):
    """The type a tensor gets; and where its shape forbade the one that it should have had, that sentence."""

    type: GgmlType
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """What the user asks for. overrides: patterns searched in names, first match, and the type there.

    pure: no rules, `file.base` everywhere. output, embedding: types of the head and of the embeddings.
    """

    file: FileType
    pure: bool = False
    overrides: tuple[tuple[re.Pattern[str], str], ...] = ()
    output: str | None = None
    embedding: str | None = None


def tensor_type(name: str) -> str:
    """The tensor type that a user names. Raises UsageError for one that no weight can have."""
    known = {canonical_name(t): t for t in BY_NAME if t not in _NOT_FOR_WEIGHTS}
    found = known.get(canonical_name(name))
    if found is None:
        raise UsageError(f"there is no tensor type {name!r}", hint=nearest(name.lower(), known.values()))
    return found


def visit_order(names: Iterable[str]) -> list[str]:
    """Names by block, then alphabetically, those of no block first: llama.cpp's order of tensors."""

    def place(name: str) -> tuple[int, str]:
        match = _BLOCK.match(name)
        return (int(match[1]) if match else -1), name

    return sorted(names, key=place)


def model_of(values: Mapping[str, Any], names: Iterable[str], importance: bool) -> Model:
    """What rules ask of a model, from its key-values. Raises HeaderError naming the key that is missing."""
    arch = values.get("general.architecture")
    if not isinstance(arch, str):
        raise HeaderError("key 'general.architecture' is missing: which rules count depends on it")
    blocks = _number(values, f"{arch}.block_count", None)
    heads = _number(values, f"{arch}.attention.head_count", 0)
    shared = _number(values, f"{arch}.attention.head_count_kv", heads)
    experts = _number(values, f"{arch}.expert_count", 0)
    layers = blocks - _number(values, f"{arch}.nextn_predict_layers", 0)
    is_70b = _BLOCKS_OF_70B.get(arch) == layers
    if arch == "llama":
        is_70b = is_70b and heads != shared and experts != 8
    tied = HEAD not in set(names)
    return Model(arch, blocks, heads // shared if shared else 0, experts, is_70b, tied, importance)


def choose_types(tensors: Sequence[Present], model: Model, options: TypeOptions) -> dict[str, Chosen]:
    """The type of each tensor, as llama-quantize gives it.

    Raises UsageError naming a tensor that no type fits, or that would be useless without importance.
    """
    walk = _Walk(tensors, model, options)
    found = {name: walk.choose(walk.present[name]) for name in visit_order(walk.present)}
    for name, chosen in found.items():
        if model.importance or walk.present[name].type == chosen.type.name:
            continue
        if needs_importance(name, chosen.type.name, options.file):
            raise UsageError(
                f"would be {chosen.type.name}, which is useless without importance", tensor=name,
                hint="Collect it: quantry imatrix MODEL --text FILE -o FILE, then pass --imatrix FILE.",
            )  # fmt: skip
    return found


class _Walk:
    """Goes through the tensors in order; rules count the tensors of each kind."""

    def __init__(self, tensors: Sequence[Present], model: Model, options: TypeOptions) -> None:
        self.present = {t.name: t for t in tensors}
        self._model, self._options = model, options
        self._seen: Counter[str] = Counter()
        values = sum(kind_of(t.name) == "v" for t in tensors)
        self._counts = {"v": values, **dict.fromkeys(_FFN, model.blocks)}

    def choose(self, t: Present) -> Chosen:
        """The type of the next tensor."""
        options, kind = self._options, kind_of(t.name)
        manual = next((type for pattern, type in options.overrides if pattern.search(t.name)), None)
        if not self.changes(t.name):
            return Chosen(BY_NAME[t.type])
        if kind == "embedding" and options.embedding and (manual is None or t.name == "token_embd.weight"):
            return self._checked(t, options.embedding)
        if kind == "head" and options.output:
            return self._checked(t, options.output)
        if options.file.is_dense:
            return Chosen(BY_NAME[options.file.base])
        if manual is None:
            manual = options.file.base if options.pure else self._by_rules(t, kind)
        return _fitting(t, manual)

    def changes(self, name: str) -> bool:
        """Whether the tensor may be quantized at all."""
        t = self.present[name]
        kept = _KEPT + _KEPT_OF_ARCH.get(self._model.arch, ())
        flat = next((i for i, size in enumerate(t.shape) if size != 1), len(t.shape))
        return (
            len(t.shape) - flat > 1  # dimensions of 1 in front are none in GGUF
            and name.endswith("weight")
            and name not in _KEPT_NAMES
            and not any(part in name for part in kept)
        )

    def _by_rules(self, t: Present, kind: str) -> str:
        file, model, options = self._options.file, self._model, self._options
        if any(part in t.name for part in _Q8_OF_ARCH.get(model.arch, ())):
            return "q8_0"
        if kind == "head" or (kind == "embedding" and model.tied):
            whole = t.shape[-1] % BY_NAME[file.base].block == 0
            return options.output or head_type(file, whole, model.arch)
        if file.name == "MXFP4_MOE":
            stack = len(t.shape) > 2 and t.shape[-3] > 1
            return "mxfp4" if stack and (kind in _FFN or model.arch not in _MXFP4_BY_KIND) else "q8_0"
        place = Place(self._index(t, kind), self._counts.get(kind, 0), model)
        self._seen[kind] += 1
        return rule_type(file, kind, place)

    def _index(self, t: Present, kind: str) -> int:
        """Of the tensor among those of its kind; feed-forward tensors of experts are not in order."""
        low = self._options.file.base.startswith(("iq1", "iq2"))
        if kind in _FFN and self._model.experts > 1 and not low and (match := _BLOCK.match(t.name)):
            return int(match[1])
        return self._seen[kind]

    @staticmethod
    def _checked(t: Present, type: str) -> Chosen:
        block = BY_NAME[type].block
        if t.shape[-1] % block:
            raise UsageError(
                f"cannot be {type}: {t.shape[-1]} columns are not a multiple of its block of {block}",
                tensor=t.name, hint="Choose another type for it.",
            )  # fmt: skip
        return Chosen(BY_NAME[type])


def _fitting(t: Present, type: str) -> Chosen:
    """The type, or the one that is taken where its blocks do not divide the columns."""
    columns, block = t.shape[-1], BY_NAME[type].block
    if columns % block == 0:
        return Chosen(BY_NAME[type])
    smaller = _SMALLER_BLOCK.get(type, type)
    if smaller == type and block > 32:
        raise UsageError(
            f"cannot be {type}: {columns} columns are not a multiple of its block of {block}",
            tensor=t.name, hint="Give it another type: --tensor-type.",
        )  # fmt: skip
    found = "f16" if columns % BY_NAME[smaller].block else smaller
    return Chosen(BY_NAME[found], f"{columns} columns are not a multiple of {type}'s block of {block}")


def _number(values: Mapping[str, Any], key: str, default: int | None) -> int:
    """An integer, of the first layer where layers differ."""
    found = values.get(key, default)
    if isinstance(found, Sequence) and not isinstance(found, str):
        found = found[0] if len(found) else default
    if not isinstance(found, int) or isinstance(found, bool):
        what = "is missing" if found is None else f"is {found!r}, not a number"
        raise HeaderError(f"key {key!r} {what}: which type a tensor gets depends on it")
    return found

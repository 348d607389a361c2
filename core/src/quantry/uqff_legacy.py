"""UQFF 0.x: one blob per layer, numbered in the order in which mistral.rs visited the model's layers.

A blob is `u32 version, u8 tag` and the tag's fields, little endian (mistral.rs v0.8.3, mistralrs-quant/src:
`serialize` of gguf, unquantized, hqq, fp8, afq, f8q8, mxfp4). Each field is given here as the entry that UQFF
1.x has for it, so codecs read both generations alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from quantry.dtypes import ITEM_BYTES
from quantry.errors import FormatError, HeaderError, QuantryError, TruncatedFile
from quantry.safetensors_format import StoredIn, architecture_of, read_config
from quantry.safetensors_header import StoredTensor
from quantry.source import Source

__all__ = ["LEGACY", "legacy_keys", "legacy_places"]

LEGACY = (0, 2)
"""The last version of this generation: major and highest minor."""

_HINT = "Fetch the file again, or quantize the original model: quantry quantize MODEL -o OUT --isq TYPE"

_MODEL_HINT = "config.json belongs to another model, or a shard is missing."

# u32 code of a tensor's element type (mistralrs-quant/src/utils/uqff.rs); 10 to 13 were never written
_DTYPES = ("u8", "u32", "i32", "i64", "f16", "bf16", "f32", "f64", "i16", "f8_e4m3")

# fields after the flag `has_bias`, in file order, by the suffix of their 1.x entry. "tensor": with a header
# of its own; "dims": count and sizes; "bytes": as many as a field before them said; else a scalar
_FIELDS = {
    0: ((".dtype", "u32"), (".shape", "dims"), ("", "bytes")),
    1: (("", "tensor"),),
    2: (("", "tensor"), (".scales", "tensor"), (".zeros", "tensor"), (".shape", "dims"), (".bits", "u8"),
        (".group_size", "u32"), (".axis", "u8"), (".optimization_steps", "u32"), (".round_zeros", "u8"),
        (".channel_wise", "u8")),
    3: (("", "tensor"), (".dequant_w_scale", "f32"), (".dequant_x_scale", "f32"), (".quant_scale", "f32"),
        (".dtype", "u32")),
    4: (("", "tensor"), (".scales", "tensor"), (".biases", "tensor"), (".bits", "u8"), (".group_size", "u8")),
    5: ((".num_blocks", "u32"), (".shape", "dims"), ("", "bytes")),
    6: (("", "tensor"), (".scales", "tensor")),
}  # fmt: skip
_F8Q8_BLOCK_BYTES = 33

# what each block of a model holds, in mistral.rs' order (`get_layers` of mistralrs-core/src/models; checked
# against what mistralrs 0.6.0 writes). "*" is each expert's number
_ATTENTION = tuple(f"self_attn.{n}_proj" for n in "qkvo")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_BLOCK = dict.fromkeys(("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"), _ATTENTION + _MLP) | {
    "mixtral": (
        *_ATTENTION,
        "block_sparse_moe.gate",
        *(f"block_sparse_moe.experts.*.{n}" for n in ("w1", "w2", "w3")),
    ),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "qwen3moe": (*_ATTENTION, *(f"mlp.experts.*.{n}_proj" for n in ("gate", "up", "down"))),
    "starcoder2": (*_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
}


class _Blob:
    """A cursor over one blob; every length is checked against what is left before it is used."""

    def __init__(self, place: StoredIn) -> None:
        self.mapped = place.mapped
        self.at = place.stored.offset
        self.end = place.stored.offset + place.stored.nbytes

    def take(self, nbytes: int, what: str) -> int:
        """The offset of the next `nbytes` bytes, which are passed over."""
        if nbytes > self.end - self.at:
            raise TruncatedFile(f"{what} takes {nbytes} bytes, {self.end - self.at} are left", hint=_HINT)
        self.at += nbytes
        return self.at - nbytes

    def number(self, nbytes: int, what: str) -> int:
        """An unsigned number."""
        return int.from_bytes(self.mapped.read(self.take(nbytes, what), nbytes), "little")

    def stored(self, dtype: str, shape: tuple[int, ...], what: str) -> StoredIn:
        """The next bytes as a tensor."""
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        return StoredIn(self.mapped, StoredTensor(dtype, shape, self.take(nbytes, what), nbytes))

    def tensor(self, what: str) -> StoredIn:
        """A tensor with its header: bytes, element type, dimensions."""
        nbytes, code = self.number(4, f"{what}'s size"), self.number(4, f"{what}'s type")
        if code >= len(_DTYPES):
            raise HeaderError(f"{what} has element type {code}, which is unknown to UQFF 0.2", hint=_HINT)
        rank = self.number(4, f"{what}'s rank")
        start = self.take(4 * rank, f"{what}'s shape")
        raw = self.mapped.read(start, 4 * rank)
        shape = tuple(int.from_bytes(raw[i : i + 4], "little") for i in range(0, 4 * rank, 4))
        needed = math.prod(shape) * ITEM_BYTES[_DTYPES[code]]
        if needed != nbytes:
            raise HeaderError(
                f"{what} is {_DTYPES[code]} {list(shape)}, {needed} bytes, but says {nbytes}", hint=_HINT
            )
        return self.stored(_DTYPES[code], shape, what)


class _Version(NamedTuple):
    major: int
    minor: int
    patch: int


def legacy_places(
    source: Source, blobs: Mapping[str, StoredIn]
) -> tuple[dict[str, StoredIn], tuple[int, int, int]]:
    """Every field of every blob under the name it has in UQFF 1.x, and the version; no data is read.

    blobs: by their decimal names, of all shards. Raises FormatError naming the blob: an unknown version, tag,
    element type or architecture, a length that leaves the blob, sizes that contradict each other.
    """
    first = next(iter(blobs.values())).mapped.path
    try:
        keys = legacy_keys(read_config(source), len(blobs))
    except FormatError as e:
        e.file = e.file or str(first)
        raise
    found: dict[str, StoredIn] = {}
    versions: set[_Version] = set()
    for index, key in enumerate(keys):
        place = blobs.get(str(index))
        if place is None:
            raise FormatError(
                f"holds {len(blobs)} layers, none of number {index} ({key})", file=first, hint=_HINT
            )
        try:
            version, entries = _entries(place)
        except QuantryError as e:
            e.file, e.tensor = e.file or str(place.mapped.path), f"{key}.weight"
            e.problem = f"(blob {index}) {e.problem}"
            raise
        versions.add(version)
        found |= {f"{key}{suffix}": field for suffix, field in entries.items()}
    if len(versions) != 1:
        rows = ", ".join(".".join(map(str, v)) for v in sorted(versions))
        raise HeaderError(f"its layers are of several versions: {rows}", file=first, hint=_HINT)
    return found, versions.pop()


def legacy_keys(config: Mapping[str, Any], count: int) -> list[str]:
    """Layer keys in mistral.rs' order: the head, also where it is tied, then block by block.

    Raises FormatError for an architecture whose order is not known, or that has not `count` such layers.
    """
    architecture = architecture_of(config)
    kind = (architecture or "").casefold().replace("_", "").removesuffix("forcausallm")
    if kind not in _BLOCK:
        whose = architecture or "a model without config.json"
        raise FormatError(
            f"is UQFF 0.x, whose layers have numbers, no names, and the layer order of {whose} is not known"
            f" (known: {', '.join(sorted(_BLOCK))})",
            hint="Quantize the original model again: quantry quantize MODEL -o OUT --isq TYPE",
        )
    blocks = config.get("num_hidden_layers")
    if type(blocks) is not int or not 0 <= blocks <= count:
        raise FormatError(
            f"num_hidden_layers is {blocks!r} in config.json, the shards hold {count} layers",
            hint=_MODEL_HINT,
        )
    keys = ["lm_head"]
    for i in range(blocks):
        keys += (f"model.layers.{i}.{part}" for part in _parts(kind, config, i, count))
        if len(keys) > count:
            break
    if len(keys) != count:
        more = "more" if len(keys) > count else len(keys)
        raise FormatError(
            f"holds {count} layers, {architecture} of {blocks} blocks has {more}",
            hint=_MODEL_HINT,
        )
    return keys


def _parts(kind: str, config: Mapping[str, Any], block: int, count: int) -> list[str]:
    """The layers of one block, experts one by one; a plain MLP where qwen3_moe's config says so."""
    parts = _BLOCK[kind]
    plain = [part for part in parts if "*" not in part]
    if len(plain) == len(parts):
        return plain
    experts = config.get("num_local_experts" if kind == "mixtral" else "num_experts")
    step, only = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers")
    if type(experts) is not int or type(step) is not int or step < 1 or not 0 <= experts <= count:
        raise FormatError(
            f"config.json says {experts!r} experts, decoder_sparse_step {step!r}; the shards hold {count}"
            " layers",
            hint=_MODEL_HINT,
        )
    if kind == "qwen3moe" and (
        not experts or (block + 1) % step or (isinstance(only, list) and block in only)
    ):
        return [*plain, *_MLP]
    stacked = [part for part in parts if "*" in part]
    return [*plain, *(part.replace("*", str(e)) for e in range(experts) for part in stacked)]


def _entries(place: StoredIn) -> tuple[_Version, dict[str, StoredIn]]:
    if place.stored.dtype != "u8" or len(place.stored.shape) != 1:
        raise HeaderError(
            f"must be u8 of one dimension, found {place.stored.dtype} {list(place.stored.shape)}"
        )
    blob = _Blob(place)
    packed = blob.number(4, "the version")
    version = _Version(packed >> 16, packed >> 8 & 255, packed & 255)
    if version.major != LEGACY[0] or version.minor > LEGACY[1]:
        raise HeaderError(
            f"is UQFF {'.'.join(map(str, version))}; numbered layers are 0.0 to 0.{LEGACY[1]}", hint=_HINT
        )
    tag = blob.stored("u8", (), "the tag")
    return version, {".weight.format": tag} | dict(_fields(blob, blob.mapped.read(tag.stored.offset, 1)[0]))


def _fields(blob: _Blob, tag: int) -> Iterator[tuple[str, StoredIn]]:
    if tag not in _FIELDS:
        raise HeaderError(f"tag {tag} is unknown to UQFF 0.2, which ends at {max(_FIELDS)}", hint=_HINT)
    nbytes = blob.number(4, "the data's size") if tag == 0 else 0
    has_bias = blob.number(1, "the bias flag")
    if has_bias > 1:
        raise HeaderError(f"the bias flag is {has_bias}, not 0 or 1", hint=_HINT)
    for suffix, kind in _FIELDS[tag]:
        what = f"`weight{suffix}`"
        if kind == "tensor":
            field = blob.tensor(what)
        elif kind == "dims":
            field = blob.stored("u32", (blob.number(4, f"{what}'s rank"),), what)
        elif kind == "bytes":
            field = blob.stored("u8", (nbytes,), what)
        else:
            field = blob.stored(kind, (), what)
        if suffix == ".num_blocks":
            nbytes = _F8Q8_BLOCK_BYTES * int.from_bytes(blob.mapped.read(field.stored.offset, 4), "little")
        yield f".weight{suffix}", field
    if has_bias:
        yield ".bias", blob.tensor("the bias")
    if blob.at != blob.end:
        raise HeaderError(f"{blob.end - blob.at} bytes follow the last field", hint=_HINT)

"""One layer of a UQFF output, understood from its headers and small entries (mistral.rs, uqff-format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantry.codec import UqffCodec
from quantry.errors import FormatError, HeaderError, PluginError, QuantryError
from quantry.hints import dist_for_tag
from quantry.layout import Layout, Shape
from quantry.safetensors_format import StoredIn
from quantry.uqff_shards import Entries

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Layer", "layer_keys", "read_layer", "tensor_of"]

LAST_TAG = 6  # of UQFF 1.2
_SMALL_BYTES = 4096  # entries up to this size are facts about the layer, read while listing
_BIAS_DTYPES = ("f32", "f16", "bf16", "f64", "f8_e4m3")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as stored: its codec, what the codec makes of it, and where its entries lie by suffix."""

    key: str
    codec: UqffCodec
    layout: Layout
    shape: Shape
    parts: Mapping[str, StoredIn]
    bias: StoredIn | None


def layer_keys(stored: Entries) -> list[str]:
    """Keys of every layer, sorted byte-wise: whatever has a weight or a tag."""
    keys = {name.removesuffix(".weight") for name in stored.places if name.endswith(".weight")}
    keys |= {name.removesuffix(".weight.format") for name in stored.places if name.endswith(".weight.format")}
    return sorted(keys, key=str.encode)


def read_layer(stored: Entries, key: str) -> Layer:
    """One layer, from its headers and small entries. Raises FormatError or PluginError."""
    parts = _parts(stored, key)
    anchor = next(iter(parts.values()))
    try:
        if "" not in parts:
            raise FormatError("is missing, though the file holds its `weight.format`")
        codecs = _codecs(_tag(parts.get(".format")))
        specs = {suffix: place.stored.spec for suffix, place in parts.items() if suffix != ".format"}
        small = {
            suffix: tensor_of(parts[suffix])
            for suffix, spec in specs.items()
            if suffix and spec.nbytes <= _SMALL_BYTES
        }
        codec, layout, shape = _understand(codecs, specs, small)
        reason = layout.why_not(shape)
        if reason is not None:
            raise HeaderError(f"{layout} cannot hold shape {list(shape)}: {reason}")
    except QuantryError as e:
        e.file, e.tensor = e.file or str(anchor.mapped.path), e.tensor or f"{key}.weight"
        raise
    bias = stored.places.get(f"{key}.bias")
    if bias is not None and (bias.stored.dtype not in _BIAS_DTYPES or bias.stored.shape != shape[:-1]):
        raise HeaderError(
            f"must be floats of {list(shape[:-1])}, found {bias.stored.dtype} {list(bias.stored.shape)}",
            file=bias.mapped.path,
            tensor=f"{key}.bias",
        )
    return Layer(key, codec, layout, shape, parts, bias)


def tensor_of(place: StoredIn) -> Tensor:
    """An entry as a view of its mapped file."""
    return place.mapped.tensor(place.stored.offset, place.stored.spec)


def _parts(stored: Entries, key: str) -> dict[str, StoredIn]:
    weight = f"{key}.weight"
    names = stored.suffixes.get(key, ())
    return {name[len(weight) :]: stored.places[name] for name in names}


def _tag(place: StoredIn | None) -> int:
    if place is None:
        raise FormatError("has no `weight.format`")
    if place.stored.dtype != "u8" or place.stored.shape != ():
        raise HeaderError(
            f"`weight.format` must be a u8 scalar, found {place.stored.dtype} {list(place.stored.shape)}"
        )
    return place.mapped.read(place.stored.offset, 1)[0]


def _codecs(tag: int) -> list[UqffCodec]:
    from quantry.plugins import registry

    found = [codec for codec in registry().codecs if codec.tag == tag]
    if found:
        return found
    if tag > LAST_TAG:
        raise HeaderError(f"tag {tag} is unknown to UQFF 1.2, which ends at {LAST_TAG}")
    raise PluginError(f"no installed plugin reads UQFF tag {tag}", hint=f"pip install {dist_for_tag(tag)}")


def _understand(
    codecs: list[UqffCodec], specs: Mapping[str, Any], small: Mapping[str, Tensor]
) -> tuple[UqffCodec, Layout, Shape]:
    refusals: list[QuantryError] = []
    for codec in codecs:
        try:
            return (codec, *codec.layout_of(specs, small))
        except QuantryError as e:
            refusals.append(e)
    raise refusals[0]

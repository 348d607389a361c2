"""Quantry's extension of UQFF: layouts that no tag stores, under a tag that mistral.rs refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from quantry.codec import UqffCodec
from quantry.errors import HeaderError, PluginError, UsageError
from quantry.hints import dist_for_family
from quantry.layout import BufferSpec, Layout, Shape
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ANY_FAMILY", "EXTENSION_TAG", "ExtensionCodec", "extension_metadata"]

EXTENSION_TAG = 255  # mistral.rs: "QuantizedSerdeType 255 is invalid."
ANY_FAMILY = "*"
_VERSION = 1
_MAX_DIM = 2**32 - 1  # `.quantry.shape` is U32
_MAX_TEXT = 4096  # bytes of a layout's text: it must be among the small entries

_EXTENSION, _LAYOUT, _SHAPE = ".quantry.extension", ".quantry.layout", ".quantry.shape"


class ExtensionCodec(UqffCodec):
    """A layout as its text, its shape and its buffers; the first buffer is `<key>.weight` itself.

    ```
    ""                   the first of `layout.buffers(shape)`
    .quantry.extension   U8 scalar, 1
    .quantry.layout      U8 [n], the layout's text in UTF-8
    .quantry.shape       U32 [rank]
    .quantry.<buffer>    each other buffer, in its own type and shape
    ```
    """

    tag = EXTENSION_TAG
    family = ANY_FAMILY

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """Refuses private packings and layouts that no installed plugin gives."""
        from quantry.plugins import registry

        if not layout.storable:
            return f"{layout} is a private packing of kernels"
        if registry().layouts.get(layout.family) is not type(layout):
            return f"no installed plugin gives the layout family {layout.family!r}"
        if len(str(layout).encode()) > _MAX_TEXT:
            return f"its text is longer than {_MAX_TEXT} bytes"
        if not shape or max(shape) > _MAX_DIM:
            return f"the extension stores shapes of 32-bit dimensions, not {list(shape)}"
        return layout.why_not(shape)

    def label(self, layout: Layout) -> str:
        """The layout's text."""
        return str(layout)

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Facts, then buffers."""
        buffers = layout.buffers(shape)
        suffixes = _suffixes(buffers)
        return {
            _EXTENSION: BufferSpec("u8", ()),
            _LAYOUT: BufferSpec("u8", (len(str(layout).encode()),)),
            _SHAPE: BufferSpec("u32", (len(shape),)),
            **{suffixes[name]: spec for name, spec in buffers.items()},
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The buffers' own memory."""
        import torch

        suffixes = _suffixes(qt.buffers)
        return {
            _EXTENSION: torch.tensor(_VERSION, dtype=torch.uint8),
            _LAYOUT: torch.tensor(list(str(qt.layout).encode()), dtype=torch.uint8),
            _SHAPE: torch.tensor(qt.shape, dtype=torch.uint32),
            **{suffixes[name]: buffer for name, buffer in qt.buffers.items()},
        }

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """From the text; every buffer must be there in the type and shape that the layout says."""
        _check_version(specs, small)
        layout = _layout(_small(specs, small, _LAYOUT, "u8"))
        shape = tuple(_small(specs, small, _SHAPE, "u32"))
        reason = self.why_not(layout, shape)
        if reason is not None:
            raise HeaderError(f"cannot be {layout} {list(shape)}: {reason}")
        buffers = layout.buffers(shape)
        for name, suffix in _suffixes(buffers).items():
            spec = buffers[name]
            if specs.get(suffix) != spec:
                found = specs.get(suffix)
                what = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
                raise HeaderError(
                    f"`weight{suffix}` {what}; {layout} {list(shape)} needs {spec.dtype} {list(spec.shape)}"
                )
        return layout, shape

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """Views of the entries."""
        suffixes = _suffixes(layout.buffers(shape))
        return QuantizedTensor(layout, shape, {name: entries[suffix] for name, suffix in suffixes.items()})


def extension_metadata(layouts: Iterable[Layout]) -> dict[str, str]:
    """What `__metadata__` says of layers in the extension to whoever opens the file; {} without any."""
    from quantry.plugins import registry

    by_family = {layout.family: layout for layout in sorted(layouts, key=str, reverse=True)}
    if not by_family:
        return {}
    owners = (registry().owner("layouts", family) for family in by_family)
    dists = sorted({"quantry", *(owner.dist for owner in owners if owner is not None)})
    examples = ", ".join(sorted(map(str, by_family.values())))
    return {
        "quantry.extension": str(_VERSION),
        "quantry.note": f"Layers of weight.format {EXTENSION_TAG} are Quantry layouts ({examples}), which"
        f" mistral.rs cannot read. To read them: pip install {' '.join(dists)}.",
    }


def _suffixes(buffers: Iterable[str]) -> dict[str, str]:
    """Buffer name → the suffix of its entry."""
    return {name: f".quantry.{name}" if i else "" for i, name in enumerate(buffers)}


def _check_version(specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> None:
    if specs.get(_EXTENSION) != BufferSpec("u8", ()):
        raise HeaderError(f"tag {EXTENSION_TAG} needs the u8 scalar `weight{_EXTENSION}`")
    version = int(small[_EXTENSION].item())
    if version != _VERSION:
        raise HeaderError(
            f"is of version {version} of Quantry's extension, this quantry reads {_VERSION}",
            hint="Upgrade quantry.",
        )


def _small(
    specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor], suffix: str, dtype: str
) -> list[int]:
    spec = specs.get(suffix)
    if spec is None or spec.dtype != dtype or len(spec.shape) != 1 or suffix not in small:
        found = "none" if spec is None else f"{spec.dtype} {list(spec.shape)}"
        raise HeaderError(f"`weight{suffix}` must be {dtype} [n] of at most 4096 bytes, found {found}")
    values: list[int] = small[suffix].tolist()
    return values


def _layout(text: Iterable[int]) -> Layout:
    from quantry.plugins import registry

    try:
        spelled = bytes(text).decode()
        family = spelled.partition(":")[0]
        if family not in registry().layouts:
            dist = dist_for_family(family)
            hint = f"pip install {dist}" if dist else "Install the plugin that wrote the file."
            raise PluginError(f"no installed plugin gives the layout family {family[:40]!r}", hint=hint)
        layout = registry().layout(spelled)
    except (UnicodeDecodeError, UsageError) as e:
        problem = e.problem if isinstance(e, UsageError) else str(e)
        raise HeaderError(f"`weight{_LAYOUT}` names no layout: {problem}") from e
    if str(layout) != spelled:
        raise HeaderError(f"`weight{_LAYOUT}` is {spelled[:80]!r}, which is spelled {layout}")
    return layout

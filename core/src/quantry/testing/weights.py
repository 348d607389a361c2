"""Layouts and packed weights to try things on: enumerated from what is installed, drawn at random."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from quantry.errors import QuantryError, UsageError
from quantry.layout import Layout, Shape
from quantry.layouts import Dense, GroupedAffine, GroupedCodebook, ScaledFloat
from quantry.layouts.panel import PanelLayout
from quantry.panels.conversions import panels_of
from quantry.plugins import registry
from quantry.tensor import QuantizedTensor
from quantry.testing.layouts import LayoutSuite

__all__ = ["known_layouts", "random_weight"]

_SAMPLE: Shape = (48, 1024)  # every block size in use divides it
_SANE = 256.0  # no weight drawn is larger: float16 results stay finite


def known_layouts(family: str) -> list[Layout]:
    """Layouts of a family, at least one of each kind that can be told without data. "*" is every family.

    Core families by their declared abilities; others by what quantizers make and conversions reach.
    """
    known = [*_core_layouts(), *_made_by_quantizers()]
    for _ in range(2):
        reached = []
        for layout, edge in itertools.product(known, registry().conversions):
            if edge.source == layout.family and layout.why_not(_SAMPLE) is None:
                reached.append(edge.target_for(layout, _SAMPLE))
        known = list(dict.fromkeys([*known, *(there for there in reached if there is not None)]))
    return [layout for layout in known if family in (layout.family, "*")]


@functools.cache
def _core_layouts() -> tuple[Layout, ...]:
    affine = itertools.product(
        GroupedAffine.BITS,
        (32, 64, 128, 0),
        GroupedAffine.AXES,
        GroupedAffine.ZEROS,
        GroupedAffine.SCALES,
        (False, True),
    )
    books = itertools.product(GroupedCodebook.TABLES, (32, 64, 256), GroupedCodebook.SCALES, (False, True))
    blocks = ((0, 0), (1, 0), (1, 16), (1, 32), (128, 128))
    floats = itertools.product(ScaledFloat.ELEMENTS, blocks, ScaledFloat.SCALES, (False, True))
    found = [
        *_valid(GroupedAffine, affine),
        *_valid(GroupedCodebook, books),
        *_valid(ScaledFloat, floats),
        *_valid(Dense, ((name,) for name in ("f32", "f16", "bf16"))),
    ]
    panels = (panels_of(layout) for layout in found)
    return (*found, *(layout for layout in panels if layout is not None))


def _valid(cls: type[Layout], rows: Iterable[tuple[object, ...]]) -> list[Layout]:
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    found = []
    for row in rows:
        try:
            found.append(cls(**dict(zip(names, row, strict=True))))
        except UsageError:
            continue  # a combination that the layout itself refuses
    return found


def _made_by_quantizers() -> Iterator[Layout]:
    for quantizer in registry().quantizers.values():
        layout = quantizer.layout_for(_SAMPLE, "f32")
        if layout.why_not(_SAMPLE) is None:
            yield layout


def random_weight(layout: Layout, shape: Shape, seed: int = 0) -> QuantizedTensor:
    """Packed values that are finite and at most 256: random bytes where they are so, else quantized ones.

    Raises UsageError where none of these ways leads to `layout`; a suite then overrides its `weight`.
    """
    if layout.storable:
        drawn = _random(layout, shape, seed)
        if _sane(drawn).all():
            return drawn
    ways = (_panels, _quantized, _converted, _picked_rows)
    for qt in (way(layout, shape, seed) for way in ways):
        if qt is not None:
            return qt
    raise UsageError(f"no way is known to draw a weight in {layout}", hint="Override `weight` in the suite.")


def _random(layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
    buffers = LayoutSuite().random_buffers(layout, shape, seed)
    if isinstance(layout, ScaledFloat):
        _tame(buffers["codes"], layout.element)
        _tame(buffers["scales"], f"{layout.scale} scale")
    return QuantizedTensor(layout, shape, buffers)


def _tame(codes: torch.Tensor, element: str) -> None:
    """Make random float bytes finite and moderate, in place."""
    if element == "e4m3":
        codes[codes & 0x7F == 0x7F] = 0x38  # NaN → 1
    elif element == "e5m2":
        codes[codes & 0x7F > 0x50] &= 0xBF  # Inf, NaN, and above 32: exponent down by 16
    elif element == "e8m0 scale":
        codes.remainder_(8).add_(118)  # 2^-9 … 1/4
    elif element == "e4m3 scale":
        codes.remainder_(32).add_(0x10)  # 1/32 … 0.47


def _sane(qt: QuantizedTensor) -> torch.Tensor:
    """Per row of out_features: whether every weight is finite and moderate."""
    dense = qt.dequantize()
    return (dense.isfinite() & (dense.abs() <= _SANE)).flatten(min(dense.ndim - 1, 1)).all(-1)


def _dense(shape: Shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def _panels(layout: Layout, shape: Shape, seed: int) -> QuantizedTensor | None:
    if not isinstance(layout, PanelLayout):
        return None
    source = random_weight(layout.source, shape, seed)
    return QuantizedTensor(layout, shape, layout.packed(source.buffers, shape))


def _quantized(layout: Layout, shape: Shape, seed: int) -> QuantizedTensor | None:
    for quantizer in registry().quantizers.values():
        if quantizer.needs != "none" or quantizer.why_not(shape, "f32") is not None:
            continue
        if quantizer.layout_for(shape, "f32") == layout:
            with contextlib.suppress(QuantryError):  # such as a native library that is missing
                return quantizer.quantize(_dense(shape, seed), layout)
    return None


def _converted(layout: Layout, shape: Shape, seed: int) -> QuantizedTensor | None:
    for edge in registry().conversions:
        if edge.target != layout.family:
            continue
        for source in known_layouts(edge.source):
            fits = source != layout and source.storable and source.why_not(shape) is None
            if fits and edge.target_for(source, shape) == layout:
                return edge.convert(random_weight(source, shape, seed), layout)
    return None


def _picked_rows(layout: Layout, shape: Shape, seed: int) -> QuantizedTensor | None:
    """Random bytes, keeping rows whose scales happen to be moderate numbers."""
    if not layout.storable or len(shape) != 2 or layout.step(-2) != 1:
        return None
    if any(spec.shape[:1] != shape[:1] for spec in layout.buffers(shape).values()):
        return None  # a buffer that belongs to no single row
    good: list[QuantizedTensor] = []
    for attempt in range(200):
        many = _random(layout, (64, shape[1]), seed * 1000 + attempt)
        try:
            good += [many.narrow(0, int(row), 1) for row in _sane(many).nonzero().flatten()]
        except QuantryError:
            return None
        if len(good) >= shape[0]:
            return _stacked(good[: shape[0]], layout, shape)
    return None


def _stacked(rows: Sequence[QuantizedTensor], layout: Layout, shape: Shape) -> QuantizedTensor:
    return QuantizedTensor(
        layout, shape, {name: torch.cat([row.buffers[name] for row in rows]) for name in rows[0].buffers}
    )

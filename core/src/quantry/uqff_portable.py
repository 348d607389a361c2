"""Weights that no UQFF tag stores as ones that a tag does: rewritten exactly, or quantized anew."""

from __future__ import annotations

from dataclasses import dataclass

from quantry.convert import Conversion, reachable
from quantry.errors import ShapeError, UsageError, ValueDomainError, nearest
from quantry.fallback import first_fitting
from quantry.layout import Layout, Shape
from quantry.quantizer import Quantizer, canonical_name
from quantry.tensor import QuantizedTensor
from quantry.uqff_affine_bias import AffineBias
from quantry.uqff_output import codec_for

__all__ = ["EXACT", "Rewrite", "has_tag", "portable_quantizer", "portable_rewrite", "portable_weight"]

EXACT = "exact"
"""`portable=True` by name: nothing is quantized anew."""
_RUN_WEIGHTS = 4 << 20  # weights compared at a time


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An exact way to a layout that a UQFF tag stores; no conversion where the layout is one already."""

    target: Layout
    way: tuple[Conversion, ...] = ()

    def apply(self, qt: QuantizedTensor) -> QuantizedTensor:
        """The weight, or some of its rows, in `target`.

        Raises ValueDomainError when not every number is the same: then its scales overflow or are not finite.
        """
        made = qt
        for edge in self.way:
            step = edge.target_for(made.layout, made.shape)
            assert step is not None  # `portable_rewrite` came this way
            made = edge.convert(made, step)
        if made is not qt and not _equal(made, qt):
            raise ValueDomainError(
                f"{qt.layout} does not become {made.layout} exactly: its scales are too large"
            )
        return made


def portable_rewrite(layout: Layout, shape: Shape) -> Rewrite | None:
    """The way to the smallest layout of equal numbers that has a tag, from the header alone; None without."""
    if has_tag(layout, shape):
        return Rewrite(layout)
    ways, last = dict(reachable(layout, shape)), AffineBias()
    for here, way in list(ways.items()):
        there = last.target_for(here, shape) if here.family == last.source else None
        if there is not None:
            ways.setdefault(there, (*way, last))
    fitting = [target for target in ways if has_tag(target, shape)]
    if not fitting:
        return None
    best = min(fitting, key=lambda target: (target.nbytes(shape), str(target)))
    return Rewrite(best, ways[best])


def portable_quantizer(name: str) -> Quantizer | None:
    """The type that `portable=name` quantizes to where nothing is exact, None for "exact".

    Raises UsageError that proposes the nearest name.
    """
    from quantry.plugins import registry

    known = registry().quantizers
    if name == EXACT:
        return None
    if canonical_name(name) not in known:
        names = [EXACT, *(q.name for q in known.values())]
        raise UsageError(f"portable is {EXACT!r} or an ISQ type, not {name!r}", hint=nearest(name, names))
    return known[canonical_name(name)]


def portable_weight(name: str, qt: QuantizedTensor, portable: str) -> QuantizedTensor:
    """`qt` in a layout with a tag: as it is, exactly rewritten, or quantized to the type `portable` names.

    Raises ShapeError, naming the tensor `name`, when only Quantry's extension could store it.
    """
    quantizer = portable_quantizer(portable)
    rewrite = portable_rewrite(qt.layout, qt.shape)
    if rewrite is None and quantizer is not None:
        return _requantized(name, qt, quantizer)
    if rewrite is None:
        codec_for(qt.layout, qt.shape, name, extension=False)
        raise AssertionError("a layout without a rewrite has no tag")
    try:
        return rewrite.apply(qt)
    except ValueDomainError as e:
        e.tensor = name
        raise


def has_tag(layout: Layout, shape: Shape) -> bool:
    """Whether mistral.rs has a tag for the layout."""
    try:
        codec_for(layout, shape, "", extension=False)
    except ShapeError:
        return False
    return True


def _requantized(name: str, qt: QuantizedTensor, quantizer: Quantizer) -> QuantizedTensor:
    """By the first of a type and its fallbacks that fits the shape and has a tag."""

    def refusal(layout: Layout) -> str | None:
        return None if has_tag(layout, qt.shape) else f"UQFF has no tag for {layout}"

    found, layout, reasons = first_fitting(quantizer, qt.shape, "f32", refusal)
    if found is None or layout is None:
        raise ShapeError(f"cannot be made portable as {quantizer.name}: {'; '.join(reasons)}", tensor=name)
    return found.quantize(qt.dequantize(), layout)


def _equal(made: QuantizedTensor, qt: QuantizedTensor) -> bool:
    """Whether both are the same float32 numbers, compared run by run where both can be cut."""
    import torch

    steps = (made.layout.step(-2), qt.layout.step(-2))
    if steps != (1, 1):
        return torch.equal(made.dequantize(), qt.dequantize())
    rows = max(1, _RUN_WEIGHTS * qt.shape[-2] // max(1, qt.numel))
    return all(
        torch.equal(made.narrow(-2, i, n).dequantize(), qt.narrow(-2, i, n).dequantize())
        for i in range(0, qt.shape[-2], rows)
        for n in (min(rows, qt.shape[-2] - i),)
    )

"""The first of a type and its fallbacks that a weight can become."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.quantizer import Quantizer, canonical_name

__all__ = ["Fitting", "first_fitting"]


class Fitting(NamedTuple):
    """The quantizer and its layout, None where none fits; why each one before it does not."""

    quantizer: Quantizer | None
    layout: Layout | None
    reasons: tuple[str, ...]


def first_fitting(
    quantizer: Quantizer, shape: Shape, dtype: str, refusal: Callable[[Layout], str | None]
) -> Fitting:
    """Try a quantizer, then its fallbacks, on a weight of this shape and source dtype.

    refusal: why a layout cannot be kept where the weight goes, or None.
    """
    known, reasons = registry().quantizers, []
    for name in (quantizer.name, *quantizer.fallback):
        candidate = quantizer if name == quantizer.name else known.get(canonical_name(name))
        if candidate is None:
            reasons.append(f"{name} is not installed")
            continue
        reason = candidate.why_not(shape, dtype)
        if reason is None:
            layout = candidate.layout_for(shape, dtype)
            reason = refusal(layout)
            if reason is None:
                return Fitting(candidate, layout, tuple(reasons))
        reasons.append(f"{name}: {reason}")
    return Fitting(None, None, tuple(reasons))

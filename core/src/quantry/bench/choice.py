"""Which layouts are benched where the user names none, and how the user's words are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from quantry.errors import NoKernelError, UsageError, nearest
from quantry.kernel import NumericsMode
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import current_policy
from quantry.quantizer import canonical_name
from quantry.resolve import resolve

__all__ = ["default_layouts", "layout_named", "shape_named"]

# what checkpoints of the common methods hold: GPTQ and AWQ, HQQ, MLX, LLM.int8, bitsandbytes, FP8, MX
USUAL = (
    "affine:b2,g64,in,float,f16",
    "affine:b3,g64,in,float,f16",
    "affine:b4,g32,in,mid,f16",
    "affine:b4,g64,in,bias,f16",
    "affine:b4,g128,in,int,f16",
    "affine:b4,g128,in,mid,bf16",
    "affine:b5,g64,in,bias,f16",
    "affine:b6,g64,in,bias,f16",
    "affine:b8,g32,in,mid,f16",
    "affine:b8,g128,in,int,f16",
    "affine:b8,g0,in,none,f32",
    "codebook:nf4,g64,f32",
    "codebook:nf4,g64,nested",
    "codebook:fp4,g64,f32",
    "float:e4m3,1x0,f32",
    "float:e4m3,128x128,f32",
    "float:e5m2,1x0,f32",
    "float:e2m1,1x32,e8m0",
    "float:e2m1,1x16,e4m3,outer",
    "dense:f16",
    "dense:bf16",
)


def default_layouts(shape: Shape, device: str, dtype: str, numerics: Sequence[NumericsMode]) -> list[Layout]:
    """The usual layouts and those that plugins name, as far as an installed kernel runs them."""
    return [layout for layout in _known(shape) if _runs(layout, shape, device, dtype, numerics)]


def _known(shape: Shape) -> Iterable[Layout]:
    usual = [registry().layout(text) for text in USUAL]
    named = [v for cls in registry().layouts.values() for v in cls.variants()]
    made = [
        q.layout_for(shape, "f32") for q in registry().quantizers.values() if q.why_not(shape, "f32") is None
    ]
    found = dict.fromkeys([*named, *usual, *made])
    return [layout for layout in found if layout.why_not(shape) is None]


def _runs(layout: Layout, shape: Shape, device: str, dtype: str, numerics: Sequence[NumericsMode]) -> bool:
    for mode in numerics:
        try:
            resolve(
                layout, shape, ("linear",), dtype, device, replace(current_policy(), numerics=mode), rows=1
            )
        except NoKernelError:
            continue
        return True
    return False


def layout_named(text: str, shape: Shape) -> Layout:
    """The layout that a user means by "ggml:q4_k", or by the quantizer's name "q4k".

    Raises UsageError with the nearest known name.
    """
    quantizer = registry().quantizers.get(canonical_name(text))
    if ":" not in text and quantizer is not None:
        return quantizer.layout_for(shape, "f32")
    if ":" not in text:
        known = [q.name for q in registry().quantizers.values()] + [f"{f}:…" for f in registry().layouts]
        raise UsageError(f"no layout or type {text!r}", hint=nearest(text, known))
    return registry().layout(text)


def shape_named(text: str) -> Shape:
    """(N, K) from "NxK". Raises UsageError for anything else.

    >>> shape_named("14336x4096")
    (14336, 4096)
    """
    n, x, k = text.lower().partition("x")
    if not x or not n.isdecimal() or not k.isdecimal() or not int(n) * int(k):
        raise UsageError(f"{text!r} is not a shape", hint="Write out_features x in_features, as 14336x4096.")
    return int(n), int(k)

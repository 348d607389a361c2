"""Text forms, their refusals, and what importing the layouts costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from quantry import layouts
from quantry.errors import UsageError
from quantry.layout import Layout, parse_layout
from quantry.layouts import Dense, GroupedAffine, GroupedCodebook, ScaledFloat
from quantry.layouts.scaled_float import Element, FloatScale

FAMILIES: dict[str, type[Layout]] = {
    "dense": Dense,
    "affine": GroupedAffine,
    "codebook": GroupedCodebook,
    "float": ScaledFloat,
}

TEXTS = {
    "dense:bf16": Dense("bf16"),
    "affine:b4,g128,in,int,f16,perm": GroupedAffine(4, 128, "in", "int", "f16", perm=True),
    "affine:b8,g0,in,none,f32": GroupedAffine(8, 0, "in", "none", "f32"),
    "affine:b3,g64,out,float,bf16": GroupedAffine(3, 64, "out", "float", "bf16"),
    "codebook:nf4,g64,nested": GroupedCodebook("nf4", 64, "nested"),
    "codebook:iq4_nl,g32,f16,flat": GroupedCodebook("iq4_nl", 32, "f16", flat=True),
    "float:e4m3,128x128,f32": ScaledFloat("e4m3", (128, 128), "f32"),
    "float:e4m3,0x0,bf16": ScaledFloat("e4m3", (0, 0), "bf16"),
    "float:e2m1,1x16,e4m3,outer": ScaledFloat("e2m1", (1, 16), "e4m3", outer=True),
}

REFUSED = {
    "dense:f15": "Did you mean 'f16'",
    "dense:u32": "dtype 'u32' is unknown",
    "affine:b0,g64,in,int,f16": "1 to 8 bits, not 0",
    "affine:b9,g64,in,int,f16": "1 to 8 bits, not 9",
    "affine:b4,g-1,in,int,f16": "group -1 is negative",
    "affine:b4,g64,im,int,f16": "axis 'im' is unknown",
    "affine:b4,g64,in,ints,f16": "Did you mean 'int'",
    "affine:b4,g64,in,int,f64": "scale 'f64' is unknown",
    "affine:b4,g64,out,int,f16,perm": "perm sorts the columns",
    "affine:b4,g64,in,int": "lacks the field 'scale'",
    "affine:4,g64,in,int,f16": "expected b",
    "affine:b4,gx,in,int,f16": "not a number",
    "affine:b4,g64,in,int,f16,flat": "left over",
    "codebook:nf5,g64,f32": "Did you mean 'nf4'",
    "codebook:nf4,g64,bf16": "scale 'bf16' is unknown",
    "codebook:nf4,g33,f32": "even number of weights, not 33",
    "codebook:nf4,g0,f32": "even number of weights, not 0",
    "float:e3m4,1x1,f32": "element 'e3m4' is unknown",
    "float:e4m3,128,f32": "block 128 is not rows x columns",
    "float:e4m3,1x-2,f32": "block 1x-2 is not rows x columns",
    "float:e4m3,1x2x3,f32": "block 1x2x3 is not rows x columns",
    "float:e4m3,1x1,e5m2": "scale 'e5m2' is unknown",
    "afine:b4": "Did you mean 'affine'",
}


def every_affine() -> Iterator[GroupedAffine]:
    for bits in GroupedAffine.BITS:
        for zero in GroupedAffine.ZEROS:
            for scale in GroupedAffine.SCALES:
                yield GroupedAffine(bits, 32 * bits, "in", zero, scale, perm=True)
                yield GroupedAffine(bits, 0, "out", zero, scale)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_as_documented(text: str) -> None:
    assert str(TEXTS[text]) == text
    assert parse_layout(text, FAMILIES) == TEXTS[text]


def test_every_affine_has_its_own_text() -> None:
    found = list(every_affine())
    texts = {str(layout) for layout in found}
    assert len(texts) == len(set(found)) == len(found)
    assert {parse_layout(text, FAMILIES) for text in texts} == set(found)


@given(
    st.sampled_from(ScaledFloat.ELEMENTS),
    st.tuples(st.integers(0, 999), st.integers(0, 999)),
    st.sampled_from(ScaledFloat.SCALES),
    st.booleans(),
)
def test_scaled_float_reads_back(
    element: Element, block: tuple[int, int], scale: FloatScale, outer: bool
) -> None:
    layout = ScaledFloat(element, block, scale, outer)
    assert parse_layout(str(layout), FAMILIES) == layout


@pytest.mark.parametrize("text", REFUSED)
def test_malformed_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[text]):
        parse_layout(text, FAMILIES)


def test_the_four_families_and_their_panels_are_exported() -> None:
    panels = {"AffinePanel", "CodebookPanel", "FloatPanel"}
    assert set(layouts.__all__) == {cls.__name__ for cls in FAMILIES.values()} | panels
    assert not any(getattr(layouts, name).storable for name in panels)
    assert all(cls.family == family for family, cls in FAMILIES.items())


def test_importing_layouts_does_not_import_torch() -> None:
    code = (
        "import sys, quantry.layouts as l;"
        " s = l.GroupedAffine(4, 128, 'in', 'int', 'f16').nbytes((4096, 4096));"
        " print(s, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(4096 * 2048 + 4096 * 32 * 3), "False", "False"]

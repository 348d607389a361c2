"""Layouts without a tag as ones that have one: exactly where the numbers stay, quantized anew on request."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, strategies as st
from toys import noise, packed

import quantry
from quantry import (
    BufferSpec,
    GroupedAffine,
    HeaderError,
    QuantizedTensor,
    ShapeError,
    UqffCodec,
    UsageError,
    ValueDomainError,
    hookimpl,
    save_uqff,
)
from quantry.layouts.bitpack import packed_bytes
from quantry.testing import ConversionSuite, installed, random_weight
from quantry.uqff_affine_bias import AffineBias
from quantry.uqff_portable import Rewrite, portable_rewrite, portable_weight

SOURCES = [
    GroupedAffine(bits, group, "in", zero, scale)
    for bits in (2, 3, 4, 8)
    for group in (0, 32, 64, 128, 256)
    for zero in ("int", "mid", "none")
    for scale in ("f16", "bf16")
]


class TestAffineBias(ConversionSuite):
    conversion, layouts, max_cases = AffineBias(), SOURCES, 30


@given(
    st.sampled_from([(layout, shape) for layout in SOURCES for shape in ((3, 64), (2, 384))]),
    st.integers(0, 2**31),
)
def test_any_finite_scale_gives_the_same_numbers(case, seed):
    """Every float16, subnormals too, every bfloat16 below 2^119, every zero point from 0 to 255."""
    layout, shape = case
    target = AffineBias().target_for(layout, shape)
    if target is None:
        return
    generator = torch.Generator().manual_seed(seed)
    buffers = {}
    for name, spec in layout.buffers(shape).items():
        if name == "scales":
            raw = torch.randint(-(2**15), 2**15, spec.shape, generator=generator, dtype=torch.int16)
            scales = raw.view(quantry.torch_dtype(spec.dtype))
            buffers[name] = torch.where(scales.abs() < 2.0**119, scales, 1.5).contiguous()
        else:
            buffers[name] = torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
    qt = QuantizedTensor(layout, shape, buffers)
    assert torch.equal(AffineBias().convert(qt, target).dequantize(), qt.dequantize())


@pytest.mark.parametrize(
    ("layout", "shape", "target"),
    [
        ("affine:b4,g128,in,int,f16", (4, 256), "affine:b4,g128,in,bias,f32"),
        ("affine:b4,g256,in,int,f16", (4, 256), "affine:b4,g128,in,bias,f32"),
        ("affine:b8,g0,in,none,bf16", (4, 320), "affine:b8,g64,in,bias,f32"),
        ("affine:b4,g128,in,mid,f16", (4, 192), "affine:b4,g64,in,bias,f32"),  # the last group is short
        ("affine:b4,g16,in,int,f16", (4, 256), None),
        ("affine:b4,g128,in,int,f16", (4, 100), None),
        ("affine:b4,g128,in,int,f16", (4, 0), None),
        ("affine:b4,g128,in,int,f32", (4, 256), None),  # s·q rounds
        ("affine:b4,g128,in,float,f16", (4, 256), None),  # q - z does
        ("affine:b4,g128,in,int,f16,perm", (4, 256), None),
        ("affine:b4,g64,out,int,f16", (64, 256), None),
    ],
)
def test_which_layouts_it_takes(layout, shape, target):
    found = AffineBias().target_for(quantry.registry().layout(layout), shape)
    assert (None if found is None else str(found)) == target


class BiasCodec(UqffCodec):
    """As tag 4, so that this test needs no plugin."""

    tag, family = 4, "affine"

    def why_not(self, layout, shape):
        good = isinstance(layout, GroupedAffine) and layout.zero == "bias" and layout.bits in (2, 3, 4, 6, 8)
        return None if good else "tag 4 stores a bias per group"

    def label(self, layout):
        return f"afq{layout.bits}"

    def entries(self, layout, shape):
        codes, scales, biases = layout.buffers(shape).values()
        return {"": codes, ".scales": scales, ".biases": biases, ".bits": BufferSpec("u8", ())}

    def encode(self, qt):
        codes, scales, biases = qt.buffers.values()
        bits = torch.tensor(qt.layout.bits, dtype=torch.uint8)
        return {"": codes, ".scales": scales, ".biases": biases, ".bits": bits}

    def layout_of(self, specs, small):
        bits = int(small[".bits"].item())
        *lead, row = specs[""].shape
        shape = (*lead, row * 8 // bits)
        if packed_bytes(shape[-1], bits) != row:
            raise HeaderError("rows are torn")
        group = shape[-1] // specs[".scales"].shape[-1]
        return GroupedAffine(bits, group, "in", "bias", specs[".scales"].dtype), shape

    def decode(self, entries, layout, shape):
        buffers = {"codes": entries[""], "scales": entries[".scales"], "biases": entries[".biases"]}
        return QuantizedTensor(layout, shape, buffers)


class Plugin:
    """The codec, and nothing else."""

    codec: ClassVar[UqffCodec] = BiasCodec()

    @hookimpl
    def quantry_uqff_codecs(self):
        return [self.codec]


@pytest.fixture
def tag4(toys):
    with installed(Plugin(), "tag4"):
        yield


NAME = "model.layers.0.mlp.up_proj.weight"
INT4 = GroupedAffine(4, 32, "in", "int", "f16")


@pytest.mark.parametrize("portable", [True, "exact", "toy32"])
def test_what_converts_exactly_is_converted(tmp_path, tag4, portable):
    qt = random_weight(INT4, (6, 64))
    save_uqff(tmp_path / "x.uqff", {NAME: qt, "lm_head.weight": packed()}, config={}, portable=portable)
    ckpt = quantry.open(tmp_path)
    assert str(ckpt.entry(NAME).layout) == "affine:b4,g32,in,bias,f32"
    assert torch.equal(ckpt[NAME].dequantize(), qt.dequantize())
    assert ckpt.entry("lm_head.weight").layout == packed().layout  # it has a tag
    assert quantry.verify(tmp_path, strict=True) == []


PERMUTED = GroupedAffine(4, 32, "in", "int", "f16", perm=True)


def test_what_does_not_is_an_error_that_names_the_layer_and_the_remedy(tmp_path, tag4):
    with pytest.raises(ShapeError, match="UQFF cannot store affine") as e:
        save_uqff(tmp_path / "x.uqff", {NAME: random_weight(PERMUTED, (6, 64))}, portable=True)
    assert e.value.tensor == NAME
    assert "--portable=q8_0" in e.value.hint
    assert list(tmp_path.iterdir()) == []


def test_or_is_quantized_anew_to_the_type_that_is_named(tmp_path, tag4):
    qt = random_weight(PERMUTED, (6, 64))
    save_uqff(tmp_path / "x.uqff", {NAME: qt}, config={}, portable="toy64")
    got = quantry.open(tmp_path)[NAME]
    assert str(got.layout) == "toy:64"
    step = qt.dequantize().abs().amax(-1, keepdim=True) / 127
    assert ((got.dequantize() - qt.dequantize()).abs() <= step * 0.5001).all()


def test_its_fallbacks_are_tried(tag4):
    qt = random_weight(PERMUTED, (6, 96))
    assert str(portable_weight(NAME, qt, "toy64").layout) == "toy:32"
    assert str(portable_weight(NAME, random_weight(PERMUTED, (6, 72)), "toy64").layout) == "dense:f32"
    with pytest.raises(ShapeError, match="toy128: 96 columns are no multiple of 128") as e:
        portable_weight(NAME, qt, "toy128")
    assert e.value.tensor == NAME


def test_an_unknown_type_proposes_the_nearest(tmp_path, toys):
    with pytest.raises(UsageError, match="not 'toy46'") as e:
        save_uqff(tmp_path / "x.uqff", {NAME: packed()}, portable="toy46")
    assert "Did you mean 'toy" in e.value.hint


def test_scales_that_overflow_are_refused_by_the_numbers(tag4):
    layout = GroupedAffine(8, 32, "in", "int", "bf16")
    qt = random_weight(layout, (6, 64))
    qt.buffers["scales"][2, 1], qt.buffers["zeros"][2, 1] = 2.0**126, 200
    with pytest.raises(ValueDomainError, match="its scales are too large") as e:
        portable_weight(NAME, qt, "exact")
    assert e.value.tensor == NAME


def test_a_layout_with_a_tag_stays_and_one_without_any_way_has_none(tag4):
    assert portable_rewrite(packed().layout, (4, 64)) == Rewrite(packed().layout)
    assert portable_rewrite(PERMUTED, (4, 64)) is None
    rewrite = portable_rewrite(INT4, (3, 4, 64))
    assert rewrite is not None
    stack = random_weight(INT4, (3, 4, 64))
    assert torch.equal(rewrite.apply(stack).dequantize(), stack.dequantize())
    part = stack.narrow(0, 1, 1)
    assert torch.equal(rewrite.apply(part).dequantize(), part.dequantize())


def test_dense_layers_are_portable_as_they_are(tmp_path, toys):
    save_uqff(tmp_path / "x.uqff", {NAME: noise(4, 8)}, config={}, portable=True)
    assert torch.equal(quantry.open(tmp_path)[NAME].buffers["weight"], noise(4, 8))

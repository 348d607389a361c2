"""Layouts that no tag stores: written under tag 255, read back, checked, and refused when they lie."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import noise, packed

import quantry
from quantry import (
    Dense,
    GroupedAffine,
    GroupedCodebook,
    HeaderError,
    PluginError,
    QuantryError,
    ScaledFloat,
    ShapeError,
    save_uqff,
)
from quantry.isq import Weights, quantize_checkpoint
from quantry.layouts import AffinePanel
from quantry.testing import UqffCodecSuite, random_weight
from quantry.uqff_extension import ExtensionCodec
from quantry.uqff_output import codec_for, is_row_wise, metadata, plan_layer

LAYOUTS = (
    GroupedAffine(4, 32, "in", "int", "f16"),
    GroupedAffine(4, 32, "in", "int", "f16", perm=True),
    GroupedAffine(3, 64, "out", "float", "f32"),
    GroupedAffine(8, 0, "in", "none", "bf16"),
    *ScaledFloat.variants(),
    *GroupedCodebook.variants(),
)


class TestExtensionCodec(UqffCodecSuite):
    codec, layouts = ExtensionCodec(), LAYOUTS


KEY = "model.layers.0.mlp.up_proj"
AFFINE = LAYOUTS[0]
PERMUTED = LAYOUTS[1]


@pytest.fixture
def saved(tmp_path, toys):
    held = {
        f"{KEY}.weight": random_weight(AFFINE, (6, 64)),
        f"{KEY}.bias": noise(6).half(),
        "lm_head.weight": packed(),
    }
    save_uqff(tmp_path / "x.uqff", held, config={})
    return tmp_path


def edit(folder, change):
    path = folder / "x-0.uqff"
    held = {k: v.clone() for k, v in load_file(path).items()}
    save_file(change(held) or held, path)


def test_the_entries_and_what_the_file_says_of_them(saved):
    held = load_file(saved / "x-0.uqff")
    layer = {
        name.removeprefix(f"{KEY}.weight"): t for name, t in held.items() if name.startswith(f"{KEY}.weight")
    }
    assert layer.keys() == {
        "", ".format", ".quantry.extension", ".quantry.layout", ".quantry.shape", ".quantry.scales",
        ".quantry.zeros",
    }  # fmt: skip
    assert layer[".format"].item() == 255
    assert bytes(layer[".quantry.layout"].tolist()) == b"affine:b4,g32,in,int,f16"
    assert layer[".quantry.shape"].tolist() == [6, 64]
    assert torch.equal(layer[""], random_weight(AFFINE, (6, 64)).buffers["codes"])
    assert held[f"{KEY}.bias"].dtype == torch.float16
    with safe_open(saved / "x-0.uqff", "pt") as f:
        said = f.metadata()
    assert said["quantry.extension"] == "1"
    assert said["quantry.note"].endswith("cannot read. To read them: pip install quantry.")
    assert "affine:b4,g32,in,int,f16" in said["quantry.note"]


def test_the_metadata_names_the_plugin_of_a_layout(toys):
    layer = plan_layer("a", packed().layout, (4, 64))
    assert metadata([layer]) == metadata()  # it has a tag
    from quantry.uqff_extension import extension_metadata

    assert "pip install dist-of-toys quantry." in extension_metadata([packed().layout])["quantry.note"]


def test_it_is_read_back_whole_and_by_rows(saved):
    want, ckpt = random_weight(AFFINE, (6, 64)), quantry.open(saved)
    got = ckpt[f"{KEY}.weight"]
    assert got.layout == want.layout
    assert all(torch.equal(got.buffers[n], b) for n, b in want.buffers.items())
    assert torch.equal(ckpt.load(f"{KEY}.weight", slice(1, 4)).dequantize(), want.dequantize()[1:4])
    assert torch.equal(ckpt[f"{KEY}.bias"].buffers["weight"], noise(6).half())


def test_the_report_and_verify_say_so(saved):
    (output,) = json.loads((saved / "uqff_report.json").read_text())["outputs"]
    assert output["extension_count"] == 1
    assert output["actual_counts"] == {"affine:b4,g32,in,int,f16": 1, "toy32": 1}
    assert quantry.verify(saved) == []
    (problem,) = quantry.verify(saved, strict=True)
    assert (problem.tensor, problem.file) == (f"{KEY}.weight", "x-0.uqff")
    assert "mistral.rs refuses it" in problem.problem


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_streaming_writes_what_writing_whole_does(tmp_path, toys, layout, monkeypatch):
    monkeypatch.setattr("quantry.isq_run._BLOCK_BYTES", 4 * 128 * 4)  # blocks of a few rows
    qt = random_weight(layout, (64, 128))
    save_uqff(tmp_path / "whole" / "x.uqff", {f"{KEY}.weight": qt}, config={})
    done = quantize_checkpoint(
        Weights([(f"{KEY}.weight", qt)]), tmp_path / "rows" / "x.uqff", "keep", config={}
    )
    a, b = ((tmp_path / where / "x-0.uqff").read_bytes() for where in ("whole", "rows"))
    assert a == b
    (output,) = done.outputs
    assert output.note == (
        f"1 of 1 layers are in Quantry's extension of UQFF, which mistral.rs refuses: {layout} (1)."
        " --portable writes what it reads."
    )


def test_buffers_that_do_not_grow_with_the_rows_are_written_whole():
    rows = {layout: is_row_wise(plan_layer("a", layout, (64, 128))) for layout in LAYOUTS[:4]}
    assert rows == dict(zip(LAYOUTS[:4], (True, False, False, True), strict=True))


def test_stacks_of_experts_are_layers(tmp_path, toys):
    name, qt = "model.layers.0.mlp.experts.up_proj.weight", random_weight(AFFINE, (3, 6, 64))
    save_uqff(tmp_path / "x.uqff", {name: qt}, config={})
    assert torch.equal(quantry.open(tmp_path)[name].dequantize(), qt.dequantize())


def text(spelled):
    return torch.tensor(list(spelled.encode()), dtype=torch.uint8)


W = f"{KEY}.weight"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({".extension": torch.tensor(2, dtype=torch.uint8)}, HeaderError, "version 2 of Quantry's extension"),
        ({".extension": None}, HeaderError, "needs the u8 scalar"),
        ({".layout": None}, HeaderError, "at most 4096 bytes, found none"),
        ({".layout": text("a" * 5000)}, HeaderError, r"found u8 \[5000\]"),
        ({".layout": torch.tensor([255], dtype=torch.uint8)}, HeaderError, "names no layout"),
        ({".layout": text("ggml:iq4_xs")}, PluginError, "layout family 'ggml'"),
        ({".layout": text("strange:1")}, PluginError, "layout family 'strange'"),
        ({".layout": text("affine:b9,g32,in,int,f16")}, HeaderError, "1 to 8 bits"),
        ({".layout": text("affine:b4")}, HeaderError, "lacks the field 'group'"),
        ({".layout": text("affine:b4,g032,in,int,f16")}, HeaderError, "is spelled affine:b4,g32"),
        ({".layout": text("affine_panel:b4,g32,in,int,f16")}, HeaderError, "private packing"),
        ({".layout": text("affine:b8,g32,in,int,f16")}, HeaderError, r"needs u8 \[6, 64\]"),
        ({".shape": torch.tensor([6, 4096], dtype=torch.uint32)}, HeaderError, "needs"),
        ({".shape": torch.tensor([2**32 - 1] * 9, dtype=torch.uint32)}, HeaderError, "needs"),
        ({".shape": torch.tensor([], dtype=torch.uint32)}, HeaderError, "cannot be affine"),
        ({".shape": torch.tensor([64], dtype=torch.uint32)}, HeaderError, "cannot be affine"),
        ({".zeros": None}, HeaderError, r"`weight\.quantry\.zeros` is missing"),
        ({".scales": torch.ones(6, 2)}, HeaderError, r"is f32 \[6, 2\]"),
    ],
)  # fmt: skip
def test_each_lie_has_its_error(saved, change, error, words):
    def apply(held):
        return {
            **{n: t for n, t in held.items() if n.removeprefix(f"{W}.quantry") not in change},
            **{f"{W}.quantry{suffix}": t for suffix, t in change.items() if t is not None},
        }

    edit(saved, apply)
    with pytest.raises(error, match=words) as e:
        quantry.open(saved)
    assert e.value.tensor == W
    assert e.value.file == str(saved / "x-0.uqff")
    assert W in {p.tensor for p in quantry.verify(saved)}


def test_a_missing_plugin_is_named_when_it_is_known(saved):
    edit(saved, lambda held: held | {f"{W}.quantry.layout": text("ggml:iq4_xs")})
    with pytest.raises(PluginError) as e:
        quantry.open(saved)
    assert e.value.hint == "pip install quantry-gguf"


def test_what_cannot_be_stored_is_a_sentence(tmp_path, toys):
    panels = AffinePanel.of(AFFINE)
    with pytest.raises(ShapeError, match="private packing"):
        codec_for(panels, (16, 64), "a.weight")
    with pytest.raises(ShapeError, match="no installed plugin has a tag") as e:
        codec_for(AFFINE, (16, 64), "a.weight", extension=False)
    assert e.value.tensor == "a.weight"
    assert "portable" in e.value.hint
    with pytest.raises(ShapeError, match="32-bit dimensions"):
        codec_for(Dense("i8"), (2**32, 1), "a.weight")


@given(
    st.integers(0, len(LAYOUTS) - 1),
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_facts_raise_quantry_errors_only(tmp_path_factory, toys, which, changes):
    folder = tmp_path_factory.getbasetemp() / f"mutated{which}"
    path = folder / "x-0.uqff"
    if not folder.exists():
        save_uqff(folder / "x.uqff", {W: random_weight(LAYOUTS[which], (64, 64))}, config={})
        path.rename(folder / "good")
    content = bytearray((folder / "good").read_bytes())
    spelled = str(LAYOUTS[which]).encode()
    start = content.rindex(spelled)
    for place, value in changes:  # in the layout's text and the facts beside it
        content[start - 8 + place % (len(spelled) + 8)] = value
    path.write_bytes(content)
    with contextlib.suppress(QuantryError):
        quantry.open(path)[W].dequantize()
    assert isinstance(quantry.verify(path, strict=True), list)

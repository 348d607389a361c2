"""`quantize` of packed weights that mistral.rs has no tag for: extended, rewritten, or quantized anew."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import quantry
from quantry import GroupedAffine, QuantizedTensor, ShapeError, UsageError
from quantry.cli import cli
from quantry.isq import Weights, quantize_checkpoint
from quantry.testing import random_weight

NAME = "model.layers.0.mlp.up_proj.weight"
GPTQ = GroupedAffine(4, 64, "in", "int", "f16")
ACT_ORDER = GroupedAffine(4, 64, "in", "int", "f16", perm=True)


def packed(layout: GroupedAffine) -> QuantizedTensor:
    return random_weight(layout, (48, 256), 1)


def kept(layout, folder, **options):
    qt = packed(layout)
    done = quantize_checkpoint(Weights([(NAME, qt)]), folder / "x.uqff", "keep", **options)
    return qt, done, quantry.open(folder / "x-0.uqff")[NAME]


def test_without_being_asked_the_layout_is_kept_and_it_is_said(tmp_path):
    qt, done, again = kept(GPTQ, tmp_path)
    assert again.layout == GPTQ
    assert all(torch.equal(again.buffers[n], b) for n, b in qt.buffers.items())
    assert "which mistral.rs refuses: affine:b4,g64,in,int,f16 (1)" in done.outputs[0].note


@pytest.mark.parametrize("jobs", [1, 3])
def test_exact_rewrites_change_no_number(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr("quantry.isq_run._BLOCK_BYTES", 7 * 4 * 256)
    qt, done, again = kept(GPTQ, tmp_path, portable="exact", jobs=jobs)
    assert again.layout == GroupedAffine(4, 64, "in", "bias", "f32")
    assert torch.equal(again.dequantize(), qt.dequantize())
    assert done.outputs[0].note is None
    assert done.outputs[0].actual_counts == {"afq4": 1}


def test_without_an_exact_way_the_type_to_take_must_be_named(tmp_path):
    with pytest.raises(ShapeError, match="UQFF cannot store") as e:
        kept(ACT_ORDER, tmp_path, portable="exact")
    assert e.value.tensor == NAME
    qt, _, again = kept(ACT_ORDER, tmp_path, portable="q8_0")
    assert str(again.layout) == "ggml:q8_0"
    assert (again.dequantize() - qt.dequantize()).abs().max() < 0.01 * qt.dequantize().abs().max()


def test_types_that_mistralrs_lacks_are_refused_where_it_is_to_read_them(tmp_path):
    save_file({NAME: torch.randn(48, 256)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="no tag for iq4_xs"):
        quantize_checkpoint(
            tmp_path / "model.safetensors", tmp_path / "o" / "x.uqff", "iq4_xs", portable="exact"
        )
    done = CliRunner().invoke(
        cli, ["quantize", str(tmp_path / "model.safetensors"), "--isq", "iq4_xs", "-o", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    assert "ggml:iq4_xs (1). --portable writes what it reads." in done.stderr


def test_a_type_with_a_tag_falls_back_rather_than_into_the_extension(tmp_path):
    save_file(
        {"model.layers.0.mlp.experts.up_proj.weight": torch.randn(2, 48, 256)}, tmp_path / "m.safetensors"
    )
    done = quantize_checkpoint(tmp_path / "m.safetensors", tmp_path / "o" / "x.uqff", "mxfp4")
    (layer,) = done.outputs[0].layers
    assert (layer.stored, layer.extension) == ("unquant", False)
    assert "mxfp4" in layer.reason

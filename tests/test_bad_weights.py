"""ISQ of weights that a type cannot hold: named by tensor, row and column, or kept, never silently lost."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import quantry
from quantry import ValueDomainError
from quantry.isq import quantize_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"
TYPES = ["q4_0", "q8_0", "q4_k", "q6_k", "iq4_xs", "afq4", "mxfp4", "fp8", "f8q8", "hqq4_axis1"]

# the range of their scales is that of float32; fp8 rounds to bfloat16 first, in which 3.4e38 is infinite
HOLDS = {"afq4": 4e38, "mxfp4": 4e38, "hqq4_axis1": 4e38, "fp8": 3.3e38}


def quantized(weight: torch.Tensor, name: str, folder) -> torch.Tensor:
    save_file({NAME: weight}, folder / "model.safetensors")
    done = quantize_checkpoint(folder / "model.safetensors", folder / "out" / "x.uqff", name, jobs=2)
    return quantry.open(done.folder)[NAME].dequantize()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("value", [1e30, -3.4e38, 3.4e38])
def test_a_huge_weight_is_kept_or_named(name, value, tmp_path):
    weight = torch.randn(300, 768, generator=torch.Generator().manual_seed(0))
    weight[299, 700] = value
    if abs(value) > HOLDS.get(name, 0):
        with pytest.raises(ValueDomainError, match="row 299, column 700") as e:
            quantized(weight, name, tmp_path)
        assert e.value.tensor == NAME
        assert not (tmp_path / "out").exists()
        return
    found = quantized(weight, name, tmp_path)
    assert found.isfinite().all()
    assert abs(float(found[299, 700]) / value - 1) < 0.5


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["zeros", "denormal", "constant", "one row", "16 bit extremes"])
def test_odd_weights_stay_numbers(name, kind, tmp_path):
    weight = {
        "zeros": torch.zeros(5, 256),
        "denormal": torch.full((5, 256), 1e-40),
        "constant": torch.full((5, 256), -0.37),
        "one row": torch.randn(1, 256),
        "16 bit extremes": torch.randn(5, 256).mul(100).half(),
    }[kind]
    if name == "f8q8" and kind == "16 bit extremes":
        with pytest.raises(ValueDomainError, match=r"141\.6"):  # the largest that its scales can say
            quantized(weight, name, tmp_path)
        return
    found = quantized(weight, name, tmp_path)
    assert found.isfinite().all()
    lost = 0.5 if name == "mxfp4" else 0.13  # mistral.rs' rule cuts the largest of a block to half at most
    assert (found - weight.float()).abs().max() <= lost * weight.float().abs().max() + 1e-6

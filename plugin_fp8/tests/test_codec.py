"""UQFF tags 3 and 5: the kit, lies, scalars that come back, and whole folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantry
from quantry import BufferSpec, HeaderError, ScaledFloat, dtype_name
from quantry.testing import UqffCodecSuite
from quantry_fp8.codec import CODECS, quant_scale
from quantry_fp8.f8q8 import F8q8

FP8, F8Q8 = CODECS
SHAPES = ((16, 256), (5, 96), (3, 72), (1, 7))


class TestFp8Codec(UqffCodecSuite):
    codec = FP8
    layouts = (ScaledFloat("e4m3", (0, 0), "f32"),)
    shapes = SHAPES


class TestF8q8Codec(UqffCodecSuite):
    codec = F8Q8
    layouts = (F8q8(),)
    shapes = SHAPES


def written(name: str) -> dict[str, torch.Tensor]:
    codec = FP8 if name == "fp8" else F8Q8
    return codec.encode(quantry.quantize(torch.randn(8, 40), name))


def understood(codec: Any, entries: dict[str, torch.Tensor]) -> Any:
    specs = {name: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for name, t in entries.items()}
    return codec.layout_of(specs, entries)


def test_every_inverse_of_a_bfloat16_number_comes_back() -> None:
    """mistral.rs' quant_scale is a bfloat16 number of at most 416; dequant_w_scale its float32 inverse."""
    bits = np.arange(1, 0x43D1, dtype=np.uint32) << 16
    ups = torch.from_numpy(bits.view(np.float32))
    ups = ups[ups.reciprocal().isfinite()]
    downs = ups.reciprocal()
    shorts = downs.reciprocal().bfloat16().float()
    assert torch.equal(shorts, ups)  # what quant_scale computes, all at once
    for i in range(0, len(ups), 97):
        assert quant_scale(downs[i].item()) == ups[i].item()


@pytest.mark.parametrize("scale", [0.0, -0.1, 0.0123, 1 / 416, 1e-38, 3e38])
def test_quant_scale_is_an_inverse(scale: float) -> None:
    down = torch.tensor(scale)
    up = quant_scale(down.item())
    assert up == 0 if scale == 0 else abs(down.double().item() * up - 1) < 2**-23


@pytest.mark.parametrize(
    ("suffix", "value", "said"),
    [
        (".dtype", torch.tensor(5, dtype=torch.uint32), "`weight.dtype` is 5"),
        (".dequant_w_scale", torch.tensor(float("nan")), "no inverses"),
        (".dequant_w_scale", torch.tensor(float("inf")), "no inverses"),
        (".quant_scale", torch.tensor(1e-9), "no inverses"),
        ("", torch.zeros(2, 3, 4, dtype=torch.float8_e4m3fn), "not stacks"),
    ],
)
def test_fp8_entries_that_contradict(suffix: str, value: torch.Tensor, said: str) -> None:
    with pytest.raises(HeaderError, match=said):
        understood(FP8, {**written("fp8"), suffix: value})


@pytest.mark.parametrize(
    ("suffix", "value", "said"),
    [
        (".num_blocks", torch.tensor(11, dtype=torch.uint32), "`weight.num_blocks` is 11"),
        (".shape", torch.tensor([8, 41], dtype=torch.uint32), "must be u8"),
        (".shape", torch.tensor([2**31, 2**31], dtype=torch.uint32), "must be u8"),
        (".shape", torch.tensor([2, 4, 40], dtype=torch.uint32), "not stacks"),
        (".shape", torch.tensor([320], dtype=torch.uint32), "not stacks"),
    ],
)
def test_f8q8_entries_that_contradict(suffix: str, value: torch.Tensor, said: str) -> None:
    with pytest.raises(HeaderError, match=said):
        understood(F8Q8, {**written("f8q8"), suffix: value})


@pytest.mark.parametrize("name", ["fp8", "f8q8"])
def test_a_folder_comes_back(name: str, tmp_path: Path) -> None:
    packed = quantry.quantize(torch.randn(48, 72), name)
    key = "model.layers.0.mlp.up_proj.weight"
    quantry.save_uqff(tmp_path / "m.uqff", {key: packed})
    back = quantry.open(tmp_path).load(key)
    assert back.layout == packed.layout
    assert all(torch.equal(back.buffers[n], b) for n, b in packed.buffers.items())


def test_what_has_no_tag_says_so() -> None:
    assert "fp8_channel" not in {codec.label(ScaledFloat("e4m3", (1, 0), "f32")) for codec in CODECS}
    assert "tag 3 stores" in (FP8.why_not(ScaledFloat("e4m3", (1, 0), "f32"), (4, 32)) or "")
    assert "not stacks" in (FP8.why_not(ScaledFloat("e4m3", (0, 0), "f32"), (2, 4, 32)) or "")

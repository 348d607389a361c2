"""UQFF tag 2: the kit, lies, slabs, and whole folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quantry
from quantry import BufferSpec, GroupedAffine, HeaderError, dtype_name
from quantry.testing import UqffCodecSuite
from quantry_hqq.codec import CODECS

(CODEC,) = CODECS
LAYOUTS = tuple(GroupedAffine(bits, 64, "out", "float", "f32") for bits in (4, 8))


class TestHqqCodec(UqffCodecSuite):
    codec = CODEC
    layouts = LAYOUTS
    shapes = ((16, 256), (8, 72), (1, 64))


def test_slabs_are_rows_of_the_working_matrix() -> None:
    """Byte (r, c) of 4 bits holds the codes of elements (r, c) and (r + 32, c) of W.view(64, C)."""
    codes = torch.randint(0, 16, (5, 64), dtype=torch.uint8)  # [C, 64]
    layout, ones = LAYOUTS[0], torch.ones(5)
    packed = quantry.QuantizedTensor(
        layout, (64, 5), {"codes": quantry.pack_codes(codes, 4), "scales": ones, "zeros": ones * 0}
    )
    slabs = CODEC.encode(packed)[""]
    assert torch.equal(slabs >> 4, codes.T[:32])
    assert torch.equal(slabs & 15, codes.T[32:])
    assert torch.equal(packed.dequantize(), codes.T.float())


@pytest.mark.parametrize(
    ("suffix", "value", "said"),
    [
        (".bits", torch.tensor(3, dtype=torch.uint8), "`weight.bits` is 3"),
        (".bits", torch.tensor(8, dtype=torch.uint8), "must be u8"),
        (".axis", torch.tensor(1, dtype=torch.uint8), "`weight.axis` is 1"),
        (".channel_wise", torch.tensor(0, dtype=torch.uint8), "`weight.channel_wise` is 0"),
        (".group_size", torch.tensor(32, dtype=torch.uint32), "`weight.group_size` is 32"),
        (".shape", torch.tensor([64, 5], dtype=torch.uint32), "must be u8"),
        (".shape", torch.tensor([63, 5], dtype=torch.uint32), "groups of 64"),
        (".shape", torch.tensor([2**31, 2**31], dtype=torch.uint32), "must be u8"),
        (".shape", torch.tensor([2, 8, 24], dtype=torch.uint32), "not stacks"),
        (".scales", torch.zeros(1, 7), "`weight.scales` must be f32"),
        (".zeros", torch.zeros(6), "`weight.zeros` must be f32"),
        ("", torch.zeros(32, 5, dtype=torch.uint8), "must be u8"),
    ],
)
def test_entries_that_contradict(suffix: str, value: torch.Tensor, said: str) -> None:
    entries = {**CODEC.encode(quantry.quantize(torch.randn(16, 24), "hqq4")), suffix: value}
    specs = {name: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for name, t in entries.items()}
    with pytest.raises(HeaderError, match=said):
        CODEC.layout_of(specs, entries)


@pytest.mark.parametrize("steps", [0, 20])
def test_other_steps_are_read(steps: int) -> None:
    entries = CODEC.encode(quantry.quantize(torch.randn(16, 24), "hqq4"))
    entries[".optimization_steps"] = torch.tensor(steps, dtype=torch.uint32)
    specs = {name: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for name, t in entries.items()}
    assert CODEC.layout_of(specs, entries) == (LAYOUTS[0], (16, 24))


@pytest.mark.parametrize("name", ["hqq4", "hqq8"])
def test_a_folder_comes_back(name: str, tmp_path: Path) -> None:
    packed = quantry.quantize(torch.randn(48, 72), name)
    key = "model.layers.0.mlp.up_proj.weight"
    quantry.save_uqff(tmp_path / "m.uqff", {key: packed})
    back = quantry.open(tmp_path).load(key)
    assert back.layout == packed.layout
    assert all(torch.equal(back.buffers[n], b) for n, b in packed.buffers.items())


def test_what_has_no_tag_says_so() -> None:
    along = GroupedAffine(4, 64, "in", "float", "f32")
    assert "tag 2 stores" in (CODEC.why_not(along, (16, 64)) or "")
    assert "not stacks" in (CODEC.why_not(LAYOUTS[0], (2, 16, 64)) or "")

"""UQFF tag 4: round trips, what mistral.rs lacks, and a FormatError for each way the entries can lie."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import quantry
from quantry import BufferSpec, FormatError, GroupedAffine, Layout, QuantizedTensor, dtype_name
from quantry.testing import UqffCodecSuite, random_weight
from quantry_afq_metal.codec import AfqCodec

CODEC = AfqCodec()
WIDTHS, GROUPS = (2, 3, 4, 6, 8), (32, 64, 128)
LAYOUTS = [
    GroupedAffine(bits, group, "in", "bias", scale)
    for (bits, group), scale in zip(
        itertools.product(WIDTHS, GROUPS), itertools.cycle(GroupedAffine.SCALES), strict=False
    )
]


class TestCodec(UqffCodecSuite):
    codec, layouts, shapes = CODEC, LAYOUTS, ((5, 256), (2, 3, 128))


def specs_of(entries: dict[str, torch.Tensor]) -> dict[str, BufferSpec]:
    return {suffix: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for suffix, t in entries.items()}


def entries_of(bits: int = 4, group: int = 64, shape: tuple[int, ...] = (3, 256)) -> dict[str, torch.Tensor]:
    return CODEC.encode(random_weight(GroupedAffine(bits, group, "in", "bias", "f16"), shape, 1))


def read(entries: dict[str, torch.Tensor]) -> QuantizedTensor:
    layout, shape = CODEC.layout_of(specs_of(entries), {n: t for n, t in entries.items() if n})
    return CODEC.decode(entries, layout, shape)


def scalar(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.uint8)


def test_entries_are_those_of_mistralrs() -> None:
    entries = entries_of(3, 128)
    assert specs_of(entries) == {
        "": BufferSpec("u32", (3, 24)),
        ".scales": BufferSpec("f16", (3, 2)),
        ".biases": BufferSpec("f16", (3, 2)),
        ".bits": BufferSpec("u8", ()),
        ".group_size": BufferSpec("u8", ()),
    }
    assert (entries[".bits"].item(), entries[".group_size"].item()) == (3, 128)
    assert CODEC.label(GroupedAffine(3, 128, "in", "bias", "f16")) == "afq3"


def test_bytes_are_shared_both_ways() -> None:
    qt = random_weight(GroupedAffine(6, 64, "in", "bias", "bf16"), (2, 5, 192), 1)
    entries = CODEC.encode(qt)
    assert entries[""].data_ptr() == qt.buffers["codes"].data_ptr()
    assert read(entries).buffers["codes"].data_ptr() == qt.buffers["codes"].data_ptr()
    odd = torch.empty(qt.buffers["codes"].nbytes + 1, dtype=torch.uint8)[1:].view(qt.buffers["codes"].shape)
    odd.copy_(qt.buffers["codes"])
    moved = QuantizedTensor(qt.layout, qt.shape, {**qt.buffers, "codes": odd})
    assert torch.equal(CODEC.encode(moved)[""], entries[""])


def test_five_bits_are_read_but_not_written() -> None:
    layout = GroupedAffine(5, 64, "in", "bias", "f32")
    assert "mistral.rs" in (CODEC.why_not(layout, (3, 256)) or "")
    assert read(entries_of(5)).layout == GroupedAffine(5, 64, "in", "bias", "f16")


@pytest.mark.parametrize(
    ("layout", "shape", "reason"),
    [
        (GroupedAffine(4, 64, "in", "int", "f16"), (3, 256), "a scale and a bias per group"),
        (GroupedAffine(4, 64, "in", "float", "f16"), (3, 256), "a scale and a bias per group"),
        (GroupedAffine(4, 64, "out", "bias", "f16"), (64, 256), "a scale and a bias per group"),
        (GroupedAffine(4, 64, "in", "bias", "f16", perm=True), (3, 256), "a scale and a bias per group"),
        (GroupedAffine(7, 64, "in", "bias", "f16"), (3, 256), "not 7"),
        (GroupedAffine(4, 16, "in", "bias", "f16"), (3, 256), "not 16"),
        (GroupedAffine(4, 0, "in", "bias", "f16"), (3, 256), "whole rows"),
        (GroupedAffine(4, 64, "in", "bias", "f16"), (256,), "not 1 dimension"),
        (GroupedAffine(4, 64, "in", "bias", "f16"), (2, 2, 2, 256), "not 4 dimension"),
        (GroupedAffine(4, 64, "in", "bias", "f16"), (3, 96), "multiple of 64"),
    ],
)
def test_other_affine_weights_are_refused(layout: Layout, shape: tuple[int, ...], reason: str) -> None:
    assert reason in (CODEC.why_not(layout, shape) or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"": torch.zeros(3, 31, dtype=torch.uint32)}, "31 a row"),
        ({"": torch.zeros(3, 33, dtype=torch.uint32)}, "33 a row"),
        ({"": torch.zeros(2, 32, dtype=torch.uint32)}, "rows of `weight`"),
        ({"": torch.zeros(96, dtype=torch.uint32)}, "rank 2 or 3"),
        ({"": torch.zeros(1, 1, 3, 32, dtype=torch.uint32)}, "rank 2 or 3"),
        ({"": torch.zeros(3, 32, dtype=torch.int32)}, "must be u32"),
        ({".scales": torch.zeros(3, 3, dtype=torch.float16)}, "`weight.biases`"),
        ({".scales": torch.zeros(3, 4, dtype=torch.float64)}, "`weight.scales` must be"),
        ({".biases": torch.zeros(3, 4, dtype=torch.float32)}, "`weight.biases`"),
        ({".biases": torch.zeros(3, 5, dtype=torch.float16)}, "`weight.biases`"),
        ({".bits": scalar(0)}, "is 0"),
        ({".bits": scalar(7)}, "is 7"),
        ({".bits": scalar(8)}, "64 words"),
        ({".bits": torch.tensor([4], dtype=torch.uint8)}, "u8 scalar"),
        ({".bits": torch.tensor(4, dtype=torch.int32)}, "u8 scalar"),
        ({".group_size": scalar(0)}, "is 0"),
        ({".group_size": scalar(16)}, "is 16"),
        ({".group_size": scalar(32)}, "16 words"),
        ({".group_size": torch.tensor(64, dtype=torch.uint32)}, "u8 scalar"),
    ],
)
def test_entries_that_lie_are_named(change: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read({**entries_of(), **change})


@pytest.mark.parametrize("suffix", ["", ".scales", ".biases", ".bits", ".group_size"])
def test_a_missing_entry_is_named(suffix: str) -> None:
    entries = entries_of()
    del entries[suffix]
    with pytest.raises(FormatError, match=f"`weight{suffix}`"):
        CODEC.layout_of(specs_of(entries), entries)


def test_data_of_another_length_than_the_headers_is_refused() -> None:
    entries = entries_of()
    layout, shape = CODEC.layout_of(specs_of(entries), entries)
    with pytest.raises(FormatError, match="codes"):
        CODEC.decode({**entries, "": entries[""][:2]}, layout, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_opened_again(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {
        "model.layers.0.self_attn.q_proj.weight": quantry.quantize(torch.randn(32, 128).to(dtype), "afq4"),
        "model.layers.0.mlp.experts.up_proj.weight": quantry.quantize(
            torch.randn(2, 8, 64).to(dtype), "afq3_minmax"
        ),
    }
    quantry.save_uqff(tmp_path / "m.uqff", weights)
    opened = quantry.open(tmp_path)
    for name, qt in weights.items():
        back = opened.load(name)
        assert back.layout == qt.layout
        assert all(torch.equal(back.buffers[n], buffer) for n, buffer in qt.buffers.items())

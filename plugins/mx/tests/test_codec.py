"""UQFF tag 6: round trips, and a FormatError for each way the entries can lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quantry
from quantry import BufferSpec, FormatError, Layout, QuantizedTensor, ScaledFloat, dtype_name
from quantry.testing import UqffCodecSuite, random_weight
from quantry_mx.codec import Mxfp4Codec

CODEC = Mxfp4Codec()
LAYOUT = ScaledFloat("e2m1", (1, 32), "e8m0")


class TestCodec(UqffCodecSuite):
    codec = CODEC


def specs_of(entries: dict[str, torch.Tensor]) -> dict[str, BufferSpec]:
    return {suffix: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for suffix, t in entries.items()}


def entries_of(shape: tuple[int, ...] = (3, 256)) -> dict[str, torch.Tensor]:
    return CODEC.encode(random_weight(LAYOUT, shape, 1))


def read(entries: dict[str, torch.Tensor]) -> QuantizedTensor:
    layout, shape = CODEC.layout_of(specs_of(entries), entries)
    return CODEC.decode(entries, layout, shape)


@pytest.mark.parametrize("shape", [(3, 256), (2, 5, 64)])
def test_entries_are_those_of_mistralrs_and_share_the_bytes(shape: tuple[int, ...]) -> None:
    qt = random_weight(LAYOUT, shape, 1)
    entries = CODEC.encode(qt)
    *lead, k = shape
    assert specs_of(entries) == {
        "": BufferSpec("u8", (*lead, k // 2)),
        ".scales": BufferSpec("u8", (*lead, k // 32)),
    }
    back = read(entries)
    assert (back.layout, back.shape) == (LAYOUT, shape)
    assert back.buffers["codes"].data_ptr() == qt.buffers["codes"].data_ptr()
    assert CODEC.label(LAYOUT) == "mxfp4"


@pytest.mark.parametrize(
    ("layout", "shape", "reason"),
    [
        (ScaledFloat("e4m3", (1, 32), "e8m0"), (3, 64), "not float:e4m3"),
        (ScaledFloat("e2m1", (1, 16), "e8m0"), (3, 64), "not float:e2m1,1x16"),
        (ScaledFloat("e2m1", (1, 16), "e4m3", outer=True), (3, 64), "not float:e2m1,1x16"),
        (LAYOUT, (64,), "not 1 dimension"),
        (LAYOUT, (2, 2, 2, 64), "not 4 dimension"),
        (LAYOUT, (3, 48), "multiple of 32"),
    ],
)
def test_other_float_weights_are_refused(layout: Layout, shape: tuple[int, ...], reason: str) -> None:
    assert reason in (CODEC.why_not(layout, shape) or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"": torch.zeros(3, 127, dtype=torch.uint8)}, "does not fit"),
        ({"": torch.zeros(2, 128, dtype=torch.uint8)}, "does not fit"),
        ({"": torch.zeros(384, dtype=torch.uint8)}, "`weight` must be u8 of rank"),
        ({"": torch.zeros(1, 1, 3, 128, dtype=torch.uint8)}, "`weight` must be u8 of rank"),
        ({"": torch.zeros(3, 32, dtype=torch.uint32)}, "`weight` must be u8 of rank"),
        ({".scales": torch.zeros(3, 9, dtype=torch.uint8)}, "does not fit"),
        ({".scales": torch.zeros(1, 3, 8, dtype=torch.uint8)}, "does not fit"),
        ({".scales": torch.zeros(24, dtype=torch.uint8)}, "`weight.scales` must be u8"),
        ({".scales": torch.zeros(3, 8, dtype=torch.float32)}, "`weight.scales` must be u8"),
    ],
)
def test_entries_that_lie_are_named(change: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read({**entries_of(), **change})


@pytest.mark.parametrize("suffix", ["", ".scales"])
def test_a_missing_entry_is_named(suffix: str) -> None:
    entries = entries_of()
    del entries[suffix]
    with pytest.raises(FormatError, match=f"`weight{suffix}`"):
        read(entries)


def test_data_of_another_length_than_the_headers_is_refused() -> None:
    entries = entries_of()
    with pytest.raises(FormatError, match="codes"):
        CODEC.decode({**entries, "": entries[""][:2]}, LAYOUT, (3, 256))


def test_saved_and_opened_again(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    qt = quantry.quantize(torch.randn(32, 128), "mxfp4")
    quantry.save_uqff(tmp_path / "m.uqff", {name: qt})
    back = quantry.open(tmp_path).load(name)
    assert back.layout == LAYOUT
    assert all(torch.equal(back.buffers[n], buffer) for n, buffer in qt.buffers.items())

"""UQFF tag 0: round trips, and a FormatError for each way the entries can lie."""

from __future__ import annotations

import pytest
import torch
from ggml_samples import raw_blocks
from hypothesis import given, strategies as st

from quantry import BufferSpec, Dense, FormatError, QuantizedTensor
from quantry_gguf.codec import GgufCodec
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME

CODEC = GgufCodec()
# ggml codes as mistral.rs writes them (mistral.rs, uqff-format.md)
CODES = {
    **{"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q8_1": 9},
    **{"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14, "q8_k": 15},
}


def weight(name: str, lead: tuple[int, ...] = (3,), blocks: int = 2) -> QuantizedTensor:
    count = blocks
    for n in lead:
        count *= n
    layout = GgmlBlocks(name)
    raw = torch.from_numpy(raw_blocks(name, max(count, 1)))[:count]
    shape = (*lead, blocks * BY_NAME[name].block)
    return QuantizedTensor(layout, shape, {"blocks": raw.reshape(layout.buffers(shape)["blocks"].shape)})


def header(entries: dict[str, torch.Tensor]) -> dict[str, BufferSpec]:
    names = {torch.uint8: "u8", torch.uint32: "u32", torch.int32: "i32"}
    return {suffix: BufferSpec(names[t.dtype], tuple(t.shape)) for suffix, t in entries.items()}


def read(entries: dict[str, torch.Tensor]) -> QuantizedTensor:
    layout, shape = CODEC.layout_of(header(entries), {n: t for n, t in entries.items() if n})
    return CODEC.decode(entries, layout, shape)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_round_trip_shares_the_bytes(name: str, lead: tuple[int, ...]) -> None:
    qt = weight(name, lead)
    assert CODEC.why_not(qt.layout, qt.shape) is None
    entries = CODEC.encode(qt)
    assert header(entries) == CODEC.entries(qt.layout, qt.shape)
    assert entries[".dtype"].item() == CODES[name]
    back = read(entries)
    assert (back.layout, back.shape) == (qt.layout, qt.shape)
    assert torch.equal(back.buffers["blocks"], qt.buffers["blocks"])
    assert back.buffers["blocks"].data_ptr() == entries[""].data_ptr()


@pytest.mark.parametrize(
    ("name", "code", "dtype"),
    [("f32", 0, torch.float32), ("f16", 1, torch.float16), ("bf16", 30, torch.bfloat16)],
)
def test_float_codes_are_dense(name: str, code: int, dtype: torch.dtype) -> None:
    values = torch.randn(3, 5).to(dtype)
    entries = {
        "": values.flatten().view(torch.uint8),
        ".dtype": torch.tensor(code, dtype=torch.uint32),
        ".shape": torch.tensor([3, 5], dtype=torch.uint32),
    }
    back = read(entries)
    assert back.layout == Dense(name)
    assert torch.equal(back.dequantize(dtype), values)
    again = CODEC.encode(back)
    assert all(torch.equal(again[n], entries[n]) for n in entries)
    odd = torch.empty(values.nbytes + 1, dtype=torch.uint8)
    odd[1:] = entries[""]
    assert torch.equal(read({**entries, "": odd[1:]}).dequantize(dtype), values)


@pytest.mark.parametrize(
    ("name", "label"), [("q4_k", "q4k"), ("q8_k", "q8k"), ("q4_0", "q4_0"), ("q8_1", "q8_1")]
)
def test_labels_are_those_of_the_report(name: str, label: str) -> None:
    assert CODEC.label(GgmlBlocks(name)) == label
    assert CODEC.label(Dense("f32")) == "f32"


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - set(CODES) - {"f32", "f16", "bf16"}))
def test_types_mistralrs_lacks_are_refused(name: str) -> None:
    ggml = BY_NAME[name]
    layout = Dense(name) if ggml.is_dense else GgmlBlocks(name)
    assert name in (CODEC.why_not(layout, (1, ggml.block)) or "")
    entries = CODEC.encode(weight("q4_k"))
    with pytest.raises(FormatError, match=name):
        read({**entries, ".dtype": torch.tensor(ggml.id, dtype=torch.uint32)})


@pytest.mark.parametrize("code", [4, 5, 31, 43, 255, 2**32 - 1])
def test_unknown_code_is_named(code: int) -> None:
    with pytest.raises(FormatError, match=str(code)):
        read({**CODEC.encode(weight("q4_k")), ".dtype": torch.tensor(code, dtype=torch.uint32)})


@pytest.mark.parametrize("change", [-144, -1, 1, 144])
def test_wrong_length_names_both_lengths(change: int) -> None:
    entries = CODEC.encode(weight("q4_k"))
    size = entries[""].numel()
    entries[""] = torch.zeros(size + change, dtype=torch.uint8)
    with pytest.raises(FormatError, match=f"{size} bytes.*{size + change}"):
        read(entries)
    with pytest.raises(FormatError, match=f"{size} bytes"):
        CODEC.decode(entries, GgmlBlocks("q4_k"), (3, 512))


@pytest.mark.parametrize(
    "shape", [[], [3, 511], [3, 256], [4, 512], [2**32 - 1, 2**32 - 256], [2**32 - 1] * 64]
)
def test_wrong_shape_is_refused(shape: list[int]) -> None:
    entries = CODEC.encode(weight("q4_k"))
    with pytest.raises(FormatError):
        read({**entries, ".shape": torch.tensor(shape, dtype=torch.uint32)})


@pytest.mark.parametrize("suffix", ["", ".dtype", ".shape"])
def test_missing_entry_is_named(suffix: str) -> None:
    entries = CODEC.encode(weight("q8_0"))
    del entries[suffix]
    with pytest.raises(FormatError, match=f"`weight{suffix}`"):
        CODEC.layout_of(header(entries), entries)


@pytest.mark.parametrize(
    ("suffix", "lie"),
    [
        ("", torch.zeros(2, 432, dtype=torch.uint8)),
        ("", torch.zeros(864, dtype=torch.int32)),
        (".dtype", torch.tensor([12], dtype=torch.uint32)),
        (".dtype", torch.tensor(12, dtype=torch.int32)),
        (".shape", torch.tensor([[3, 512]], dtype=torch.uint32)),
        (".shape", torch.tensor([3, 512], dtype=torch.int32)),
    ],
)
def test_wrong_type_or_rank_of_an_entry_is_named(suffix: str, lie: torch.Tensor) -> None:
    entries = {**CODEC.encode(weight("q4_k")), suffix: lie}
    with pytest.raises(FormatError, match=f"`weight{suffix}`"):
        CODEC.layout_of(header(entries), entries)


def test_shape_too_long_to_be_read_is_refused() -> None:
    entries = CODEC.encode(weight("q4_k"))
    specs = {**header(entries), ".shape": BufferSpec("u32", (5000,))}
    with pytest.raises(FormatError, match="5000 dimensions"):
        CODEC.layout_of(specs, {".dtype": entries[".dtype"]})


@given(
    code=st.integers(0, 2**32 - 1) | st.integers(0, 45),
    shape=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 4).map(lambda n: 32 * n), max_size=6),
    nbytes=st.integers(0, 4096),
)
def test_any_entries_decode_or_raise_format_error(code: int, shape: list[int], nbytes: int) -> None:
    entries = {
        "": torch.zeros(nbytes, dtype=torch.uint8),
        ".dtype": torch.tensor(code, dtype=torch.uint32),
        ".shape": torch.tensor(shape, dtype=torch.uint32),
    }
    try:
        qt = read(entries)
    except FormatError:
        return
    assert qt.nbytes == nbytes

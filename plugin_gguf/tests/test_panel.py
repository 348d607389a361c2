"""The private packing: its size, slices, and the way there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ggml_samples import HALVES

from quantry import QuantizedTensor, UsageError
from quantry_gguf import native
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.panel import CONVERSIONS, PLANES, GgmlPanel
from quantry_gguf.types import BY_NAME

PACK, UNPACK = CONVERSIONS


def packed_blocks(kind: str, *shape: int) -> QuantizedTensor:
    """Every bit random, scales finite: Inf and NaN compare unequal to themselves."""
    layout = GgmlBlocks(kind)
    spec = layout.buffers(shape)["blocks"]
    raw = np.random.default_rng(1).integers(0, 256, spec.shape, dtype=np.uint8)
    blocks = raw.reshape(-1, BY_NAME[kind].block_bytes)
    for offset in HALVES.get(kind, ()):
        blocks[:, offset + 1] &= 0xBF  # exponents below 16
    return QuantizedTensor(layout, shape, {"blocks": torch.from_numpy(blocks.reshape(spec.shape))})


def shapes(kind: str) -> list[tuple[int, ...]]:
    block = BY_NAME[kind].block
    matrices = [
        (1, block),
        (15, 2 * block),
        (16, 3 * block),
        (17, block),
        (100, 5 * block),
        (0, block),
        (5, 0),
    ]
    return [*matrices, (3, 33, block), (2, 2, 16, 2 * block), (0, 16, block)]


@pytest.mark.parametrize("target", native.TARGETS)
@pytest.mark.parametrize("kind", PLANES)
def test_packing_is_undone_byte_for_byte(kind: str, target: str) -> None:
    if not native.library().quantry_gguf_target_runs(native.TARGETS.index(target)):
        pytest.skip(f"{target} does not run on this processor")
    native.set_target(target)
    try:
        for shape in shapes(kind):
            qt = packed_blocks(kind, *shape)
            panels = PACK.convert(qt, GgmlPanel(kind))
            back = UNPACK.convert(panels, qt.layout)
            assert torch.equal(back.buffers["blocks"], qt.buffers["blocks"])
    finally:
        native.set_target(None)


@pytest.mark.parametrize("kind", PLANES)
def test_packing_changes_no_number(kind: str) -> None:
    for shape in shapes(kind):
        qt = packed_blocks(kind, *shape)
        assert torch.equal(PACK.convert(qt, GgmlPanel(kind)).dequantize(), qt.dequantize())


@pytest.mark.parametrize("kind", PLANES)
def test_size_is_that_of_the_blocks_for_whole_panels(kind: str) -> None:
    for shape in ((16, 512), (3, 64, 768)):
        assert GgmlPanel(kind).nbytes(shape) == GgmlBlocks(kind).nbytes(shape)


@pytest.mark.parametrize("kind", PLANES)
def test_padding_rows_hold_zeros(kind: str) -> None:
    panels = PACK.convert(packed_blocks(kind, 3, 512), GgmlPanel(kind))
    assert not panels.buffers["codes"].view(-1, 16, 4)[:, 3:].any()
    whole = QuantizedTensor(panels.layout, (16, 512), panels.buffers)
    assert not whole.dequantize()[3:].any()


@pytest.mark.parametrize("kind", PLANES)
def test_slices_equal_the_slices_of_the_weight(kind: str) -> None:
    block = BY_NAME[kind].block
    qt = packed_blocks(kind, 70, 4 * block)
    panels, dense = PACK.convert(qt, GgmlPanel(kind)), qt.dequantize()
    for start, length in ((0, 16), (16, 32), (48, 22)):
        assert torch.equal(panels.narrow(0, start, length).dequantize(), dense[start : start + length])
    for start, length in ((0, block), (block, 2 * block), (3 * block, block)):
        assert torch.equal(panels.narrow(1, start, length).dequantize(), dense[:, start : start + length])


def test_one_expert_is_a_view_of_each_plane() -> None:
    panels = PACK.convert(packed_blocks("q5_k", 3, 33, 512), GgmlPanel("q5_k"))
    alone = PACK.convert(packed_blocks("q5_k", 3, 33, 512).narrow(0, 1, 1), GgmlPanel("q5_k"))
    for name, plane in panels.buffers.items():
        assert torch.equal(plane[1], alone.buffers[name][0])


def test_types_without_a_packing_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'q4_9' has no panel packing"):
        GgmlPanel("q4_9")
    assert PACK.target_for(GgmlBlocks("iq2_xxs"), (16, 256)) is None
    assert (
        GgmlPanel("q4_k").why_not((256,))
        == "a panel holds 16 rows of a matrix; this tensor has one dimension"
    )


def test_text_names_the_type_and_strict_admits_ggml_rounding() -> None:
    assert str(GgmlPanel("q6_k")) == "ggml_panel:q6_k"
    assert GgmlPanel("q6_k").published_activations == ("int8/256",)
    assert GgmlPanel("q8_0").published_activations == ("int8/32",)
    assert not GgmlPanel.storable


def test_sizes_agree_with_the_native_side() -> None:
    """The table in entry.cpp against the one here; formats.h is checked by every round trip."""
    out = torch.zeros(5, dtype=torch.int32)
    for kind, planes in PLANES.items():
        assert native.library().quantry_gguf_type_sizes(BY_NAME[kind].id, out.data_ptr()) == 0
        assert out.tolist() == [BY_NAME[kind].block, BY_NAME[kind].block_bytes, *planes]

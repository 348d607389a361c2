"""`ggml:*` keeps the promises of a layout; sizes and refusals of its types."""

from __future__ import annotations

import gguf
import pytest
import torch
from ggml_samples import HALVES
from torch import Tensor

from quantry import Layout, QuantizedTensor, Shape, ShapeError, UsageError
from quantry.testing.layouts import LayoutSuite
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME, REMOVED, TYPES

QUANTIZED = [t for t in TYPES if not t.is_dense]


def finite_blocks(name: str, count: int, generator: torch.Generator) -> Tensor:
    """Random blocks uint8 [count, block_bytes] whose scales lie near 0.1."""
    blocks = torch.randint(0, 256, (count, BY_NAME[name].block_bytes), dtype=torch.uint8, generator=generator)
    for at in HALVES.get(name, ()):
        halves = (torch.rand(count, 1, generator=generator) * 0.1 + 0.05).to(torch.float16)
        blocks[:, at : at + 2] = halves.view(torch.uint8)
    if name == "mxfp4":
        blocks[:, 0] = blocks[:, 0] % 8 + 120
    if name == "q8_k":
        blocks[:, :4] = torch.rand(count, 1, generator=generator).view(torch.uint8)
    if name == "iq1_m":  # the top nibbles of four words are the half 0x2e66
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 15 | torch.tensor(
            [0x60, 0x60, 0xE0, 0x20], dtype=torch.uint8
        )
    return blocks


class TestGgmlBlocks(LayoutSuite):
    layout_cases = (
        *((GgmlBlocks(t.name), (5, 3 * t.block)) for t in QUANTIZED),
        (GgmlBlocks("q4_k"), (2, 3, 512)),
        (GgmlBlocks("q8_0"), (96,)),
    )

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        assert isinstance(layout, GgmlBlocks)
        spec = layout.buffers(shape)["blocks"]
        count = spec.nbytes // layout.ggml.block_bytes
        blocks = finite_blocks(layout.type, count, torch.Generator().manual_seed(seed))
        return {"blocks": blocks.view(spec.shape)}


@pytest.mark.parametrize("name", BY_NAME)
def test_sizes_equal_those_of_gguf(name: str) -> None:
    sizes = {q.name.lower(): size for q, size in gguf.GGML_QUANT_SIZES.items()}
    # gguf 0.19 lacks q2_0 and keeps an old q8_1 of 40 bytes (ggml.h)
    sizes |= {"q2_0": (64, 18), "q8_1": (32, 36)}
    assert (BY_NAME[name].block, BY_NAME[name].block_bytes) == sizes[name]
    ids = {q.name.lower(): q.value for q in gguf.GGMLQuantizationType} | {"q2_0": 42}
    assert BY_NAME[name].id == ids[name]


def test_removed_ids_are_no_types() -> None:
    assert not set(REMOVED) & {t.id for t in TYPES}
    assert set(REMOVED) | {t.id for t in TYPES} == set(range(43))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("q4_0", ("int8/32",)),
        ("mxfp4", ("int8/32",)),
        ("q4_k", ("int8/256",)),
        ("iq1_s", ("int8/256",)),
        ("q1_0", ("int8/32",)),
        ("nvfp4", ("int8/32",)),
        ("q8_1", ("int8/32",)),
    ],
)
def test_published_activations_are_those_of_llama_cpp(name: str, expected: tuple[str, ...]) -> None:
    assert GgmlBlocks(name).published_activations == expected


@pytest.mark.parametrize("name", ["f16", "q4_2", "q4_l", "", "Q4_K"])
def test_unknown_type_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="quantized ggml type"):
        GgmlBlocks(name)


@pytest.mark.parametrize("shape", [(), (3, 255), (3, -256), (2, 257)])
def test_shape_that_does_not_divide_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        QuantizedTensor(GgmlBlocks("q4_k"), shape, {})


@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (2, 0, 512), (0,)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    layout = GgmlBlocks("q4_k")
    blocks = torch.empty(layout.buffers(shape)["blocks"].shape, dtype=torch.uint8)
    assert QuantizedTensor(layout, shape, {"blocks": blocks}).dequantize().shape == shape


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "iq4_xs", "iq3_s", "tq1_0"])
def test_dequantize_leaves_memory_bounded(name: str) -> None:
    """The largest temporary has as many elements as one chunk, whatever the tensor's size."""
    from torch.utils._python_dispatch import TorchDispatchMode

    block = BY_NAME[name].block
    blocks = torch.zeros((4 << 20) // block, BY_NAME[name].block_bytes, dtype=torch.uint8)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and "view" not in str(func) and "slice" not in str(func):
                sizes.append(out.untyped_storage().nbytes() if out.is_contiguous() else 0)
            return out

    with Sizes():
        GgmlBlocks(name).dequantize({"blocks": blocks}, (4, 1 << 20))
    whole = 16 << 20  # the result
    assert sum(size > 8 << 20 for size in sizes if size != whole) == 0

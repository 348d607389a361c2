"""Grouped affine weights against NumPy formulas written element by element, not by tensor tricks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from quantry.errors import ShapeError
from quantry.layout import Layout, Shape
from quantry.layouts import GroupedAffine
from quantry.layouts.bitpack import pack
from quantry.tensor import QuantizedTensor
from quantry.testing.layouts import LayoutSuite


class TestRows(LayoutSuite):
    layout_cases = (
        *((GroupedAffine(bits, 32, "in", "int", "f16"), (6, 96)) for bits in GroupedAffine.BITS),
        *(
            (GroupedAffine(4, 16, "in", zero, "bf16"), (5, 64))
            for zero in ("none", "mid", "int", "float", "bias")
        ),
        *((GroupedAffine(3, 0, "in", zero, "f32"), (5, 21)) for zero in ("none", "bias")),
        (GroupedAffine(4, 32, "in", "int", "f16"), (3, 80)),  # a short last group
        (GroupedAffine(5, 12, "in", "bias", "f32"), (3, 58)),  # groups that end inside a byte
        (GroupedAffine(4, 32, "in", "int", "f16", perm=True), (6, 96)),
        (GroupedAffine(2, 32, "in", "float", "f32", perm=True), (4, 72)),
        (GroupedAffine(4, 32, "in", "int", "f16", perm=True), (2, 4, 64)),
    )


class TestAcrossRows(LayoutSuite):
    layout_cases = (
        *((GroupedAffine(bits, 8, "out", "float", "f32"), (16, 12)) for bits in GroupedAffine.BITS),
        (GroupedAffine(4, 64, "out", "float", "f32"), (64, 10)),
        (GroupedAffine(4, 0, "out", "float", "bf16"), (20, 6)),
        (GroupedAffine(3, 8, "out", "bias", "f16"), (2, 24, 5)),
        (GroupedAffine(8, 16, "out", "mid", "f16"), (12, 8)),  # N is no multiple of the group
    )

    def refuses_slice(self, layout: Layout, shape: Shape, dim: int, start: int, length: int) -> bool:
        assert isinstance(layout, GroupedAffine)
        return dim == -1 and shape[-2] % (layout.group or shape[-2]) != 0


def random_parts(
    layout: GroupedAffine, shape: tuple[int, int], seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Unsigned codes in the order of the layout's groups, and the other buffers, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    n, k = shape
    if layout.axis == "in":
        codes = rng.integers(0, 2**layout.bits, (n, k), dtype=np.uint8)
        groups: tuple[int, ...] = (n, -(-k // layout.group) if layout.group else 1)
    else:
        group = layout.group or n
        codes = rng.integers(0, 2**layout.bits, (n * k // group, group), dtype=np.uint8)
        groups = (n * k // group,)
    parts: dict[str, np.ndarray] = {"scales": rng.normal(0, 0.02, groups)}
    if layout.zero == "int":
        parts["zeros"] = rng.integers(0, 2**layout.bits + 1, groups).clip(max=255)
    elif layout.zero in ("float", "bias"):
        parts["zeros" if layout.zero == "float" else "biases"] = rng.normal(3, 2, groups)
    if layout.perm:
        parts["perm"] = rng.permutation(k)
    return codes, parts


def as_tensor(
    layout: GroupedAffine, shape: tuple[int, int], codes: np.ndarray, parts: dict[str, np.ndarray]
) -> QuantizedTensor:
    kinds = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    buffers = {"codes": pack(torch.from_numpy(codes), layout.bits)}
    for name, values in parts.items():
        dtype = kinds[layout.scale]
        if name == "zeros" and layout.zero == "int":
            dtype = torch.uint8
        elif name == "perm":
            dtype = torch.int32
        buffers[name] = torch.from_numpy(values).to(dtype)
    return QuantizedTensor(layout, shape, buffers)


def by_definition(layout: GroupedAffine, qt: QuantizedTensor, codes: np.ndarray) -> np.ndarray:
    """Loop over all weights; float32 after each operation."""
    n, k = qt.shape
    f32 = np.float32
    side = {name: b.float().numpy() for name, b in qt.buffers.items() if name != "codes"}
    dense = np.empty((n, k), f32)
    at: tuple[int, ...]
    for row in range(n):
        for j in range(k):
            if layout.axis == "in":
                q, at = int(codes[row, j]), (row, j // layout.group if layout.group else 0)
                column = int(side["perm"][j]) if layout.perm else j
            else:
                columns = codes.shape[0]  # of W.view(group, columns)
                flat = row * k + j
                q, at, column = int(codes[flat % columns, flat // columns]), (flat % columns,), j
            s = f32(side["scales"][at])
            if layout.zero == "none":
                value = s * f32(q - 2**layout.bits if q >= 2 ** (layout.bits - 1) else q)
            elif layout.zero == "mid":
                value = s * f32(q - 2 ** (layout.bits - 1))
            elif layout.zero == "bias":
                value = f32(s * f32(q)) + f32(side["biases"][at])
            else:
                value = s * f32(f32(q) - f32(side["zeros"][at]))
            dense[row, column] = value
    return dense


@pytest.mark.parametrize("scale", GroupedAffine.SCALES)
@pytest.mark.parametrize("zero", GroupedAffine.ZEROS)
@pytest.mark.parametrize("bits", GroupedAffine.BITS)
@pytest.mark.parametrize(
    ("group", "axis", "perm", "shape"),
    [
        (16, "in", False, (3, 40)),
        (0, "in", False, (2, 19)),
        (8, "in", True, (3, 32)),
        (4, "out", False, (6, 10)),
    ],
)
def test_dequantize_is_the_formula_bit_for_bit(bits, zero, scale, group, axis, perm, shape) -> None:  # type: ignore[no-untyped-def]
    layout = GroupedAffine(bits, group, axis, zero, scale, perm)
    codes, parts = random_parts(layout, shape, seed=bits)
    qt = as_tensor(layout, shape, codes, parts)
    np.testing.assert_array_equal(qt.dequantize().numpy(), by_definition(layout, qt, codes))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_dequantize_is_the_formula_for_odd_sizes(data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from(GroupedAffine.AXES))
    n, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 30))
    group = data.draw(
        st.integers(0, 40)
        if axis == "in"
        else st.sampled_from([g for g in range(n * k + 1) if g == 0 or n * k % g == 0])
    )
    layout = GroupedAffine(
        data.draw(st.sampled_from(GroupedAffine.BITS)),
        group,
        axis,
        data.draw(st.sampled_from(GroupedAffine.ZEROS)),
        data.draw(st.sampled_from(GroupedAffine.SCALES)),
        axis == "in" and data.draw(st.booleans()),
    )
    codes, parts = random_parts(layout, (n, k), seed=data.draw(st.integers(0, 9)))
    qt = as_tensor(layout, (n, k), codes, parts)
    np.testing.assert_array_equal(qt.dequantize().numpy(), by_definition(layout, qt, codes))


def test_perm_gathers_the_input() -> None:
    """x[perm] times the stored columns equals x times the dequantized weight."""
    layout = GroupedAffine(4, 16, "in", "int", "f32", perm=True)
    codes, parts = random_parts(layout, (5, 64), seed=3)
    qt = as_tensor(layout, (5, 64), codes, parts)
    stored = (codes - parts["zeros"].repeat(16, 1)) * parts["scales"].astype(np.float32).repeat(16, 1)
    x = np.random.default_rng(0).normal(size=64)
    expected = stored @ x[parts["perm"]]
    np.testing.assert_allclose(qt.dequantize().numpy().astype(np.float64) @ x, expected, rtol=1e-6)


def test_hqq_axis_0_is_the_transposed_view() -> None:
    """HQQ: W.reshape(g, n/g), one scale and zero per column."""
    rng = np.random.default_rng(1)
    q = rng.integers(0, 16, (8, 30), dtype=np.uint8)
    zero, scale = rng.normal(7, 1, 30).astype(np.float32), rng.normal(0, 1, 30).astype(np.float32)
    buffers = {
        "codes": pack(torch.from_numpy(q.T.copy()), 4),
        "scales": torch.from_numpy(scale),
        "zeros": torch.from_numpy(zero),
    }
    qt = QuantizedTensor(GroupedAffine(4, 8, "out", "float", "f32"), (12, 20), buffers)
    expected = ((q.astype(np.float32) - zero) * scale).reshape(12, 20)
    np.testing.assert_array_equal(qt.dequantize().numpy(), expected)


def test_mlx_words_are_the_codes_viewed_as_bytes() -> None:
    """A 4-bit uint32 word of MLX holds code j at bit 4j."""
    word = torch.tensor([[0x76543210, -0x1234568]], dtype=torch.int32)  # second word 0xFEDCBA98
    buffers = {"codes": word.view(torch.uint8), "scales": torch.ones(1, 1), "biases": torch.zeros(1, 1)}
    qt = QuantizedTensor(GroupedAffine(4, 16, "in", "bias", "f32"), (1, 16), buffers)
    assert qt.dequantize().tolist() == [list(range(16))]


def test_int8_rows_are_kind_none() -> None:
    weight = torch.randint(-128, 128, (3, 10), dtype=torch.int8)
    buffers = {"codes": weight.view(torch.uint8), "scales": torch.ones(3, 1)}
    qt = QuantizedTensor(GroupedAffine(8, 0, "in", "none", "f32"), (3, 10), buffers)
    assert torch.equal(qt.dequantize(), weight.float())


def test_sizes_of_a_gptq_layer() -> None:
    qt_bytes = GroupedAffine(4, 128, "in", "int", "f16", perm=True).nbytes((4096, 11008))
    assert qt_bytes == 4096 * 11008 // 2 + 4096 * 86 * 2 + 4096 * 86 + 11008 * 4


@pytest.mark.parametrize(
    ("text_layout", "dim", "reason"),
    [
        (GroupedAffine(4, 16, "in", "int", "f16", perm=True), -1, "perm spreads neighbouring columns"),
        (GroupedAffine(4, 16, "out", "float", "f16"), -2, "each group spans rows"),
    ],
)
def test_a_slice_that_is_never_possible_says_why(text_layout: GroupedAffine, dim: int, reason: str) -> None:
    assert text_layout.step(dim) is None
    with pytest.raises(ShapeError, match=reason):
        text_layout.narrow({}, (64, 64), dim, 0, 16)


def test_columns_of_hqq_groups_that_mix_columns_are_refused() -> None:
    layout = GroupedAffine(4, 16, "out", "float", "f32")
    codes, parts = random_parts(layout, (12, 8), seed=0)
    with pytest.raises(ShapeError, match="12 rows are not a multiple of the group"):
        as_tensor(layout, (12, 8), codes, parts).narrow(-1, 0, 4)


def test_hqq_count_that_does_not_divide_is_refused() -> None:
    reason = GroupedAffine(4, 64, "out", "float", "f32").why_not((10, 10))
    assert reason == "10*10 weights do not divide into groups of 64 across rows"


@pytest.mark.parametrize(
    ("bits", "group", "step"), [(4, 128, 128), (3, 64, 64), (3, 12, 24), (8, 5, 5), (4, 0, 2), (7, 0, 8)]
)
def test_column_steps_end_on_groups_and_bytes(bits: int, group: int, step: int) -> None:
    assert GroupedAffine(bits, group, "in", "mid", "f16").step(-1) == step

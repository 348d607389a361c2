"""The grouped kernels against float64 on every instruction set of this machine, over all layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from drawn import DTYPES, activations, check_dx, check_linear, check_rows, drawn, multiply
from grouped_library import BITS, BY_NAME, FLOATS, LIBRARY, compiled

from quantry import GroupedAffine, GroupedCodebook, Layout, QuantizedTensor, ScaledFloat, Shape

GROUPS = (16, 32, 48, 64, 128, 0)
SHAPES: tuple[Shape, ...] = ((33, 200), (16, 256), (17, 95), (48, 160), (1, 64), (35, 416))
ROWS = (1, 3, 8, 20, 2, 33, 5)


@pytest.fixture(params=LIBRARY.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    LIBRARY.set_target(request.param)
    yield request.param
    LIBRARY.set_target(None)


def check_all(layout: Layout, shape: Shape, turn: int) -> None:
    """Every kernel on one weight; rows and element types take turns."""
    w, dense = drawn(layout, shape)
    family = layout.family
    rows, dtype = ROWS[turn % len(ROWS)], DTYPES[turn % len(DTYPES)]
    x = activations((rows, shape[1]), dtype, turn)
    for name in (f"test.{family}_int8", f"test.{family}_exact"):
        if takes(name, w):
            check_linear(name, x, w, dense)
            if turn % 3 == 0:
                check_linear(name, x, w, dense, activations((shape[0],), dtype))
    check_dx(f"test.{family}_dx", activations((rows, shape[0]), dtype, turn), w, dense)
    check_rows(f"test.{family}_embedding", w, dense, dtype)


def takes(name: str, w: QuantizedTensor) -> bool:
    """Whether a kernel is meant for the weight: int8 is for scales along rows, and close to integers."""
    layout = w.layout
    if name.endswith("_exact"):
        return True
    element = getattr(layout, "element", None) or getattr(layout, "table", None)
    return getattr(layout, "axis", "in") == "in" and element not in ("fp4", "e4m3", "e5m2")


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_affine_along_rows(target: str, bits: int) -> None:
    kinds = itertools.product(GROUPS, GroupedAffine.ZEROS, GroupedAffine.SCALES, (False, True))
    for turn, (group, zero, scale, perm) in enumerate(kinds):
        if (turn + bits + LIBRARY.target()) % 2:  # half on each; neighbours have the other half
            layout = GroupedAffine(bits, group, "in", zero, scale, perm)
            check_all(layout, SHAPES[(turn + bits) % len(SHAPES)], turn + bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_affine_across_rows(target: str, bits: int) -> None:
    kinds = itertools.product((16, 64, 0), GroupedAffine.ZEROS, GroupedAffine.SCALES)
    for turn, (group, zero, scale) in enumerate(kinds):
        columns = (40, 96, 300)[turn % 3]
        check_all(GroupedAffine(bits, group, "out", zero, scale), (64, columns), turn + bits)


@pytest.mark.parametrize("table", GroupedCodebook.TABLES)
def test_codebooks(target: str, table: str) -> None:
    kinds = itertools.product((16, 32, 64, 96), GroupedCodebook.SCALES, (False, True))
    for turn, (group, scale, flat) in enumerate(kinds):
        rows = (33, 16, 300)[turn % 3]
        check_all(GroupedCodebook(table, group, scale, flat), (rows, 2 * group), turn)
        check_all(GroupedCodebook(table, group, scale, flat), (17, 5 * group), turn + 1)


@pytest.mark.parametrize("element", ["e2m1", *FLOATS])
def test_small_floats(target: str, element: str) -> None:
    blocks = ((0, 0), (1, 0), (1, 16), (1, 32), (1, 128), (128, 128), (16, 64), (0, 32), (32, 0), (16, 16))
    kinds = itertools.product(blocks, ScaledFloat.SCALES, (False, True))
    for turn, (block, scale, outer) in enumerate(kinds):
        check_all(ScaledFloat(element, block, scale, outer), SHAPES[turn % len(SHAPES)], turn)
        if block == (128, 128):
            check_all(ScaledFloat(element, block, scale, outer), (260, 300), turn)


_ONE_OF_EACH: tuple[Layout, ...] = (
    *(GroupedAffine(bits, 64, "in", "int", "f16") for bits in GroupedAffine.BITS),
    GroupedAffine(4, 16, "in", "bias", "f32", perm=True),
    GroupedAffine(8, 0, "in", "none", "f32"),  # LLM.int8
    GroupedAffine(4, 64, "out", "float", "f16"),
    GroupedCodebook("nf4", 64, "nested"),
    GroupedCodebook("iq4_nl", 32, "f16"),
    ScaledFloat("e4m3", (128, 128), "f32"),
    ScaledFloat("e5m2", (1, 0), "bf16"),
    ScaledFloat("e2m1", (1, 16), "e4m3", outer=True),
)


ONE_OF_EACH = compiled(_ONE_OF_EACH)


@pytest.mark.parametrize("layout", ONE_OF_EACH, ids=str)
def test_any_number_of_rows(target: str, layout: Layout) -> None:
    w, dense = drawn(layout, (64, 192))
    for m in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31, 65):
        x = activations((m, 192))
        for mode in ("int8", "exact"):
            if takes(f"_{mode}", w):
                check_linear(f"test.{layout.family}_{mode}", x, w, dense)
        check_dx(f"test.{layout.family}_dx", activations((m, 64)), w, dense)


@pytest.mark.parametrize("layout", ONE_OF_EACH, ids=str)
def test_threads_change_no_bit(target: str, layout: Layout) -> None:
    w, _ = drawn(layout, (448, 1024))
    threads = torch.get_num_threads()
    try:
        for m in (1, 7, 40):
            x = activations((m, 1024))
            for mode in ("int8", "exact"):
                if takes(f"_{mode}", w):
                    kernel, found = BY_NAME[f"test.{layout.family}_{mode}"], []
                    for count in range(1, 9):
                        torch.set_num_threads(count)
                        found.append(multiply(kernel, x, w))
                    assert all(torch.equal(y, found[0]) for y in found), (mode, m)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ONE_OF_EACH, ids=str)
def test_a_broken_activation_shows_in_its_row_only(target: str, layout: Layout, value: float) -> None:
    w, _ = drawn(layout, (64, 192))
    for m in (4, 20):
        x = activations((m, 192))
        x[2, 150] = value
        others = [i for i in range(m) if i != 2]
        for mode in ("int8", "exact"):
            if takes(f"_{mode}", w):
                y = multiply(BY_NAME[f"test.{layout.family}_{mode}"], x, w)
                assert y[others].isfinite().all()
                assert not y[2].isfinite().any(), (mode, m)


@pytest.mark.parametrize("layout", ONE_OF_EACH, ids=str)
def test_activations_of_any_size(target: str, layout: Layout) -> None:
    """Rows of zeros, of the smallest floats, of huge ones; an outlier among small ones."""
    w, dense = drawn(layout, (64, 192))
    x = activations((6, 192))
    x[0], x[1, :64], x[2], x[3, 5], x[4] = 0, 0, x[2] * 1e-41, 3e4, x[4] * 1e30
    for mode in ("int8", "exact"):
        if takes(f"_{mode}", w):
            check_linear(f"test.{layout.family}_{mode}", x, w, dense)


@pytest.mark.parametrize("element", FLOATS)
def test_nan_of_a_weight_shows_in_its_column_only(target: str, element: str) -> None:
    layout = ScaledFloat(element, (1, 32), "e8m0")
    good, _ = drawn(layout, (40, 96))
    codes = good.layout.codes(good.buffers, good.shape)
    codes[7, 33] = 0x7F
    w = QuantizedTensor(good.layout, good.shape, {**good.buffers, **good.layout.planes(codes, good.shape)})
    for m in (1, 5, 40):
        y = multiply(BY_NAME["test.float_exact"], activations((m, 96)), w)
        assert y[:, 7].isnan().all(), m
        assert y[:, [i for i in range(40) if i != 7]].isfinite().all(), m
    rows = BY_NAME["test.float_embedding"].embedding(
        torch.arange(40), list(w.buffers.values()), w.layout, w.shape, torch.float32
    )
    assert rows.isnan().nonzero().tolist() == [[7, 33]]


def test_weights_of_one_call_give_what_each_gives() -> None:
    layouts = (
        GroupedAffine(4, 64, "in", "int", "f16"),
        GroupedAffine(4, 64, "in", "none", "f32"),
        GroupedAffine(7, 32, "in", "mid", "bf16"),
    )
    weights = [drawn(layout, (rows, 192))[0] for layout, rows in zip(layouts, (64, 48, 17), strict=True)]
    for mode in ("int8", "exact"):
        kernel = BY_NAME[f"test.affine_{mode}"]
        run = kernel.bind_group([(list(w.buffers.values()), w.layout, w.shape) for w in weights])
        assert run is not None
        for m in (1, 3, 30):
            x = activations((m, 192))
            for y, w in zip(run(x), weights, strict=True):
                assert torch.equal(y, multiply(kernel, x, w)), (mode, m, str(w.layout))
    assert BY_NAME["test.affine_exact"].bind_group([]) is None


@pytest.mark.parametrize("layout", ONE_OF_EACH, ids=str)
def test_a_bound_weight_gives_the_same(layout: Layout) -> None:
    w, _ = drawn(layout, (64, 192))
    kernel = BY_NAME[f"test.{layout.family}_exact"]
    run = kernel.bind(list(w.buffers.values()), w.layout, w.shape)
    bias = activations((64,)).to(torch.bfloat16)
    for x in (activations((192,)), activations((2, 3, 192)), activations((4, 200))[:, 5:197]):
        flat = x.reshape(-1, 192)
        want = multiply(kernel, flat, w, bias).view(*x.shape[:-1], 64)
        assert torch.equal(run(x, bias), want)

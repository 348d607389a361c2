"""What adapters add to one row, against float64, on every instruction set and any number of threads."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, strategies as st

from quantry_gguf import native
from quantry_gguf.kernels import Dense16
from quantry_gguf.low_rank import LowRank

TARGETS = [
    name for i, name in enumerate(native.TARGETS) if native.library().quantry_gguf_target_runs(i)
]  # fmt: skip
# K, then R_i and N_i: tails of K, R and N at every width, a layer without columns, work for two threads
SHAPES = [
    (640, (16, 16, 16), (1024, 256, 256)),
    (1024, (16,), (640,)),
    (77, (3,), (133,)),
    (5, (1, 2, 1), (7, 0, 65)),
    (1, (1,), (1,)),
    (2048, (64, 5), (2048, 1031)),
]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    native.set_target(request.param)
    yield request.param
    native.set_target(None)


def parts(k, ranks, widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(sum(ranks), k, generator=generator)
    bs = [torch.randn(r, n, generator=generator) for r, n in zip(ranks, widths, strict=True)]
    ys = [torch.randn(1, n, generator=generator) for n in widths]
    return a, bs, ys, torch.randn(1, k, generator=generator)


def assert_added(a, bs, ys, x):
    """Within what float32 sums of K products, R products and one addition may be off."""
    before = [y.clone() for y in ys]
    bound = Dense16().bind_low_rank(a, bs)
    assert bound is not None
    bound(x, ys)
    inner = (x.double() @ a.double().T).split([len(b) for b in bs], 1)
    sizes = (x.double().abs() @ a.double().abs().T).split([len(b) for b in bs], 1)
    for y, y0, h, size, b in zip(ys, before, inner, sizes, bs, strict=True):
        off = (
            (a.shape[1] + len(b)) * size @ b.double().abs() + y.double().abs() + y0.double().abs()
        ) * 2**-24
        assert ((y - (y0 + h @ b.double())).abs() <= off).all()


@pytest.mark.parametrize(("k", "ranks", "widths"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sums_are_those_of_float64(target, threads, k, ranks, widths):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_added(*parts(k, ranks, widths))
    finally:
        torch.set_num_threads(before)


@given(
    st.integers(1, 70),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 150)), min_size=1, max_size=4),
    st.integers(0, 9),
)
def test_any_shape(k, layers, seed):
    assert_added(*parts(k, [r for r, _ in layers], [n for _, n in layers], seed))


def test_the_number_of_threads_changes_no_bit(target):
    a, bs, ys, x = parts(2048, (64, 64), (2048, 1031))
    found = []
    for threads in (1, 2, 3):
        own = [y.clone() for y in ys]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        Dense16().bind_low_rank(a, bs)(x, own)
        torch.set_num_threads(before)
        found.append(own)
    assert all(torch.equal(one, two) for other in found[1:] for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, bs: (a.half(), bs),
        lambda a, bs: (a, [bs[0].bfloat16()]),
        lambda a, bs: (a.t().contiguous().t(), bs),
        lambda a, bs: (a.to("meta"), bs),
        lambda a, bs: (torch.ones(1025, 8), [torch.ones(1025, 8)]),
    ],
)
def test_other_tensors_are_left_to_torch(change):
    a, bs, _, _ = parts(8, (2,), (8,))
    assert Dense16().bind_low_rank(*change(a, bs)) is None


def described(**changes):
    """A description of 2 ranks, 8 columns, 16 results, and what keeps its arrays alive."""
    a, b = torch.ones(2, 8), torch.ones(2, 16)
    arrays = {
        "ranks": (ctypes.c_int64 * 1)(changes.pop("rank", 2)),
        "widths": (ctypes.c_int64 * 1)(changes.pop("width", 16)),
        "bs": (ctypes.c_void_p * 1)(b.data_ptr()),
    }
    fields = {
        "target": native.target(), "count": 1, "columns": 8, "bytes": 4 * 48, "a": a.data_ptr(),
        **{name: ctypes.addressof(array) for name, array in arrays.items()},
    }  # fmt: skip
    return LowRank(**{**fields, **changes}), (a, b, arrays)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"target": 99}, 1),
        ({"target": -1}, 1),
        ({"count": 0}, 3),
        ({"count": -1}, 3),
        ({"columns": -8}, 3),
        ({"columns": 2**62}, 3),
        ({"rank": 0}, 3),
        ({"rank": 1025}, 3),
        ({"rank": 2**62}, 3),
        ({"width": -1}, 3),
        ({"width": 2**62}, 3),
        ({"bytes": 4 * 47}, 4),
        ({"a": None}, 4),
        ({"ranks": None}, 4),
        ({"widths": None}, 4),
        ({"bs": None}, 4),
    ],
)
def test_the_native_function_refuses_what_cannot_be(changes, status):
    bound, alive = described(**changes)
    x, y = torch.ones(8), torch.zeros(16)
    to = (ctypes.c_void_p * 1)(y.data_ptr())
    run = native.library().quantry_gguf_low_rank
    assert run(ctypes.addressof(bound), x.data_ptr(), to, 2) == status
    assert y.tolist() == [16.0 if status == 0 else 0.0] * 16
    assert len(alive) == 3


def test_missing_arguments_are_refused():
    bound, alive = described()
    x, to = torch.ones(8), (ctypes.c_void_p * 1)(None)
    run = native.library().quantry_gguf_low_rank
    assert run(None, x.data_ptr(), to, 1) == 4
    assert run(ctypes.addressof(bound), None, to, 1) == 4
    assert run(ctypes.addressof(bound), x.data_ptr(), None, 1) == 4
    assert run(ctypes.addressof(bound), x.data_ptr(), to, 1) == 4, "the result's address is 0"
    assert len(alive) == 3

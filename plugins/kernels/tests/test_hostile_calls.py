"""The C functions with sizes that do not agree: a status, never a crash."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import Any

import pytest
import torch
from drawn import activations, drawn
from grouped_library import LIBRARY

from quantry import GroupedAffine, GroupedCodebook, Layout, QuantizedTensor, ScaledFloat
from quantry.panels.abi import GroupedWeight, describe, panel_layout

HUGE = 1 << 62
BAD = range(1, 7)
LAYOUTS: tuple[Layout, ...] = (
    GroupedAffine(4, 32, "in", "int", "f16", perm=True),
    GroupedAffine(7, 16, "in", "bias", "f32"),
    GroupedAffine(3, 16, "out", "float", "bf16"),
    GroupedCodebook("nf4", 64, "nested"),
    ScaledFloat("e4m3", (16, 32), "f32", outer=True),
)

# field → values that fit no weight
WRONG: Mapping[str, tuple[Any, ...]] = {
    "target": (-1, 9),
    "family": (-1, 3),
    "rows": (-1, 15, 64, HUGE),
    "columns": (-1, 31, 1000, HUGE),
    "group": (0, -16, HUGE),
    "scale": (-1, 9),
    "codes": (None,),
    "scales": (None,),
    "codes_bytes": (0, 1, -1, HUGE),
    "scales_bytes": (0, 1, -1, HUGE),
    "high_bytes": (7,),
    "top_bytes": (7,),
    "zeros_bytes": (7,),
    "nested_bytes": (7,),
}


def described(w: QuantizedTensor) -> GroupedWeight:
    return describe(LIBRARY.target(), True, panel_layout(w.layout), w.shape, w.buffers)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_description_that_lies_is_refused_by_every_function(layout: Layout) -> None:
    w, _ = drawn(layout, (32, 128))
    x, y, ids, need = activations((2, 128)), torch.empty(2, 128), torch.zeros(2, dtype=torch.int64), c_int64()
    room = torch.empty(1 << 22, dtype=torch.uint8)
    lib = LIBRARY.library()

    def statuses(at: int) -> list[int]:
        return [
            lib.quantry_test_grouped_check(at),
            lib.quantry_test_grouped_linear(
                at, 0, 2, x.data_ptr(), 128, None, y.data_ptr(), 2, room.data_ptr(), room.nbytes
            ),
            lib.quantry_test_grouped_dx(
                at, 0, 2, x.data_ptr(), 32, y.data_ptr(), 2, room.data_ptr(), room.nbytes
            ),
            lib.quantry_test_grouped_embedding(at, 0, ids.data_ptr(), 2, y.data_ptr(), 2),
            lib.quantry_test_grouped_dx_scratch(at, 2, 2, addressof(need)),
            lib.quantry_test_grouped_experts_scratch(at, 1, 2, 1, 2, addressof(need)),
        ]

    good = described(w)
    assert statuses(addressof(good)) == [0] * 6
    for field, values in WRONG.items():
        for value in values:
            wrong = described(w)
            setattr(wrong, field, value)
            for status in statuses(addressof(wrong)):
                assert status in BAD, (field, value)


def test_a_call_that_lies_is_refused() -> None:
    w, _ = drawn(LAYOUTS[0], (32, 128))
    weight, x, y, need = described(w), activations((3, 128)), torch.empty(3, 32), c_int64()
    listed = (c_int64 * 1)(addressof(weight))
    lib = LIBRARY.library()
    assert lib.quantry_test_grouped_scratch_list(addressof(listed), 1, 3, 1, addressof(need)) == 0
    room = torch.empty(need.value, dtype=torch.uint8)
    good = [
        addressof(weight), 0, 3, x.data_ptr(), 128, None, y.data_ptr(), 1, room.data_ptr(), need.value,
    ]  # fmt: skip
    call = lib.quantry_test_grouped_linear
    assert call(*good) == 0
    bad = {
        0: (None,), 1: (3, -1), 2: (-1, HUGE), 3: (None,), 4: (127, -5), 6: (None,), 8: (None,),
        9: (0, need.value - 65, -1),
    }  # fmt: skip
    for position, values in bad.items():
        for value in values:
            arguments = list(good)
            arguments[position] = value
            assert call(*arguments) in BAD, (position, value)


def test_experts_that_do_not_exist_are_refused() -> None:
    w, _ = drawn(GroupedAffine(4, 32, "in", "int", "f16"), (4, 16, 64))
    weight, x, y = described(w), activations((2, 64)), torch.empty(2, 2, 16)
    room = torch.empty(1 << 22, dtype=torch.uint8)
    for ids, status in (([0, 3, 1, 1], 0), ([0, 4, 1, 1], 6), ([0, -1, 1, 1], 6), ([HUGE, 0, 0, 0], 6)):
        which = torch.tensor(ids)
        assert (
            LIBRARY.library().quantry_test_grouped_experts(
                addressof(weight), 4, 0, 2, 2, 1, x.data_ptr(), 64, which.data_ptr(), None, y.data_ptr(), 2,
                room.data_ptr(), room.nbytes,
            )
            == status
        )  # fmt: skip


@pytest.mark.parametrize("name", ["pack", "unpack"])
def test_packing_checks_its_sizes(name: str) -> None:
    w, _ = drawn(GroupedAffine(7, 32, "in", "int", "f16"), (20, 70))
    planes = [w.buffers[n] for n in ("codes", "high", "top")]
    stream = torch.zeros(20, 62, dtype=torch.uint8)
    good = [
        LIBRARY.target(), 7, 0, 1, 20, 70, 0, stream.data_ptr(), stream.nbytes,
        *(p.data_ptr() for p in planes), sum(p.nbytes for p in planes), 2,
    ]  # fmt: skip
    call = getattr(LIBRARY.library(), f"quantry_test_grouped_{name}")
    assert call(*good) == 0
    bad = {
        0: (-1, 9), 1: (0, 9, 6), 3: (-1, 2, HUGE), 4: (-1, 40, HUGE), 5: (-1, 80, HUGE), 6: (-1, 8, 16),
        7: (None,), 8: (0, -1, HUGE), 9: (None,), 10: (None,), 11: (None,), 12: (0, -1, HUGE),
    }  # fmt: skip
    for position, values in bad.items():
        for value in values:
            arguments = list(good)
            arguments[position] = value
            assert call(*arguments) in BAD, (position, value)

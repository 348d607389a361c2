"""Packing by native code: every width on every instruction set, byte for byte what the layouts define."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from drawn import by_torch, clean
from grouped_library import CONVERSIONS, LIBRARY, UNPACKING

from quantry import (
    GroupedAffine,
    GroupedCodebook,
    Layout,
    NativeLibrary,
    ScaledFloat,
    Shape,
    panel_conversions as conversions_of,
)
from quantry.testing import installed, random_weight

ROWS: tuple[Shape, ...] = ((16, 32), (33, 70), (1, 1), (17, 95), (40, 256), (3, 20, 64), (0, 32), (4, 0))
ACROSS: tuple[Shape, ...] = ((16, 32), (48, 70), (64, 33), (2, 32, 40))


@pytest.fixture(params=LIBRARY.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    LIBRARY.set_target(request.param)
    yield request.param
    LIBRARY.set_target(None)


def check(layout: Layout, shape: Shape) -> None:
    pack = next(edge for edge in CONVERSIONS if edge.source == layout.family)
    unpack = next(edge for edge in UNPACKING if edge.target == layout.family)
    source = clean(random_weight(layout, shape, 1))
    want = by_torch(source)
    target = pack.target_for(layout, shape)
    assert target == want.layout
    made = pack.convert(source, target)
    for name, buffer in want.buffers.items():
        assert torch.equal(made.buffers[name], buffer), f"{target} {list(shape)}: {name}"
    back = unpack.convert(made, layout)
    for name, buffer in source.buffers.items():
        assert torch.equal(back.buffers[name], buffer), f"{layout} {list(shape)}: {name}"


@pytest.mark.parametrize("zero", ["none", "int"])
@pytest.mark.parametrize("bits", GroupedAffine.BITS)
def test_affine_codes(target: str, bits: int, zero: str) -> None:
    for shape in ROWS:
        check(GroupedAffine(bits, 32, "in", zero, "f16"), shape)
    for shape in ACROSS:
        check(GroupedAffine(bits, 16, "out", zero, "f16"), shape)
    check(GroupedAffine(bits, 64, "out", zero, "f16"), (128, 70))
    check(GroupedAffine(bits, 0, "out", zero, "f16"), (48, 70))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (GroupedCodebook("nf4", 64, "nested", flat=True), (70, 128)),
        (GroupedCodebook("fp4", 32, "f32"), (33, 96)),
        (ScaledFloat("e2m1", (1, 32), "e8m0"), (33, 97)),
        (ScaledFloat("e4m3", (128, 128), "f32"), (130, 97)),
        (ScaledFloat("e5m2", (0, 0), "f32"), (17, 64)),
    ],
    ids=str,
)
def test_other_codes(target: str, layout: Layout, shape: Shape) -> None:
    check(layout, shape)


def test_threads_change_no_byte() -> None:
    source = random_weight(GroupedAffine(5, 32, "in", "int", "f16"), (500, 640), 1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            made = CONVERSIONS[0].convert(source, by_torch(source).layout)
            assert all(torch.equal(made.buffers[n], b) for n, b in by_torch(source).buffers.items())
    finally:
        torch.set_num_threads(threads)


def test_a_converted_weight_shares_no_memory_with_its_source() -> None:
    source = random_weight(GroupedAffine(4, 16, "out", "int", "f16"), (32, 64), 1)
    made = CONVERSIONS[0].convert(source, by_torch(source).layout)
    addresses = {b.data_ptr() for b in source.buffers.values()}
    assert not addresses & {b.data_ptr() for b in made.buffers.values()}


def test_a_plugin_without_its_library_packs_nothing() -> None:
    hollow = NativeLibrary("quantry_kernels", "no_such", "no_such", "quantry-hollow")
    (edge,) = conversions_of(hollow, ("affine",))
    assert edge.target_for(GroupedAffine(4, 32, "in", "int", "f16"), (16, 64)) is None


@pytest.mark.parametrize("axis", ["in", "out"])
def test_panels_are_unpacked_where_their_plugin_is_gone(axis: str) -> None:
    source = random_weight(GroupedAffine(3, 16, axis, "none", "f16"), (32, 64), 1)

    class Nothing:
        """A plugin of nothing."""

    with installed(Nothing(), alone=True):
        back = by_torch(source).convert(source.layout)
    assert all(torch.equal(back.buffers[n], b) for n, b in source.buffers.items())

"""Bit streams against arithmetic on Python's unbounded integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from quantry.errors import ShapeError, ValueDomainError
from quantry.layouts.bitpack import codes_per_unit, pack, packed_bytes, unpack

BITS = range(1, 9)


def as_stream(codes: list[int], bits: int) -> bytes:
    """One row by definition: code j at bit j*bits of a little-endian integer."""
    number = sum(code << (j * bits) for j, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@st.composite
def rows_of_codes(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    bits = draw(st.sampled_from(BITS))
    count = draw(st.integers(0, 70))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    return bits, draw(st.lists(row, min_size=1, max_size=4))


@settings(deadline=None)
@given(rows_of_codes())
def test_pack_is_a_little_endian_stream_per_row(drawn: tuple[int, list[list[int]]]) -> None:
    bits, rows = drawn
    packed = pack(torch.tensor(rows, dtype=torch.uint8), bits)
    assert [bytes(row) for row in packed.tolist()] == [as_stream(row, bits) for row in rows]


@settings(deadline=None)
@given(rows_of_codes())
def test_unpack_reads_a_little_endian_stream(drawn: tuple[int, list[list[int]]]) -> None:
    bits, rows = drawn
    streams = [list(as_stream(row, bits)) for row in rows]
    codes = unpack(torch.tensor(streams, dtype=torch.uint8), bits, len(rows[0]))
    assert codes.dtype == torch.uint8
    assert codes.tolist() == rows


@pytest.mark.parametrize("bits", BITS)
def test_unpack_ignores_the_unused_bits_of_the_last_byte(bits: int) -> None:
    count = 3 * codes_per_unit(bits) + 1
    full = torch.full((packed_bytes(count, bits),), 255, dtype=torch.uint8)
    assert unpack(full, bits, count).tolist() == [2**bits - 1] * count


@pytest.mark.parametrize("bits", BITS)
def test_leading_dimensions_and_strides_are_kept(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 19, 2), dtype=torch.uint8).transpose(1, 2)
    packed = pack(codes, bits)
    assert packed.shape == (3, 2, packed_bytes(19, bits))
    assert torch.equal(unpack(packed.transpose(0, 1), bits, 19), codes.transpose(0, 1))


@pytest.mark.parametrize("bits", BITS)
def test_unpack_does_not_share_memory(bits: int) -> None:
    packed = torch.zeros(packed_bytes(16, bits), dtype=torch.uint8)
    unpack(packed, bits, 16).fill_(255)
    assert not packed.any()


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_too_wide_is_refused(bits: int) -> None:
    with pytest.raises(ValueDomainError, match=f"code {2**bits} does not fit in {bits} bits"):
        pack(torch.tensor([0, 2**bits], dtype=torch.uint8), bits)


def test_a_row_of_wrong_length_is_refused() -> None:
    with pytest.raises(ShapeError, match="11 codes of 3 bits fill 5 bytes, the row has 4"):
        unpack(torch.zeros(4, dtype=torch.uint8), 3, 11)


# MLX's units: of 3, 5 and 3 bytes
@pytest.mark.parametrize(
    ("bits", "unit"),
    [
        (
            3,
            lambda a, b, c: [
                a & 7,
                (a >> 3) & 7,
                (a >> 6) | ((b & 1) << 2),
                (b >> 1) & 7,
                (b >> 4) & 7,
                (b >> 7) | ((c & 3) << 1),
                (c >> 2) & 7,
                c >> 5,
            ],
        ),
        (
            5,
            lambda a, b, c, d, e: [
                a & 31,
                (a >> 5) | ((b & 3) << 3),
                (b >> 2) & 31,
                (b >> 7) | ((c & 15) << 1),
                (c >> 4) | ((d & 1) << 4),
                (d >> 1) & 31,
                (d >> 6) | ((e & 7) << 2),
                e >> 3,
            ],
        ),
        (6, lambda a, b, c: [a & 63, (a >> 6) | ((b & 15) << 2), (b >> 4) | ((c & 3) << 4), c >> 2]),
    ],
)
def test_units_are_those_of_mlx(bits: int, unit) -> None:  # type: ignore[no-untyped-def]
    size = unit.__code__.co_argcount
    raw = torch.randint(0, 256, (7, size), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    expected = [unit(*row) for row in raw.tolist()]
    assert unpack(raw, bits, codes_per_unit(bits)).tolist() == [
        row[: codes_per_unit(bits)] for row in expected
    ]

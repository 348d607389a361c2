"""Damaged copies of a file's bytes: what a reader of untrusted files must refuse or survive."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["mutated", "mutations"]

_HEADER_BYTES = 512  # lies hurt most where lengths and counts stand
_LIES = (
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x00" * 7 + b"\x80",
    b"\xff" * 7 + b"\x7f",
    b"\x00\x00\x00\x00\x01\x00\x00\x00",
)
# 8-byte little-endian: 2^64-1, 0, 2^63, 2^63-1, 2^32


def mutations(data: bytes, count: int = 200, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(what was done, damaged bytes), the same in every run.

    Truncations to powers of two and around the end; then `count` flipped bits, overwritten lengths, swapped,
    deleted and doubled pieces, half of them in the first 512 bytes.
    """
    sizes = {0, 1, *(1 << i for i in range(1, 31)), len(data) // 2, len(data) - 1, len(data) - 8}
    for size in sorted(s for s in sizes if 0 <= s < len(data)):
        yield f"cut to {size} bytes", data[:size]
    yield "8 bytes added", data + b"\0" * 8
    dice = random.Random(seed)
    for _ in range(count):
        yield _damaged(data, dice)


def mutated(data: bytes) -> SearchStrategy[bytes]:
    """A hypothesis strategy of damaged copies; it shrinks towards early, small damage. Needs hypothesis."""
    from hypothesis import strategies as st

    def apply(damage: list[Any]) -> bytes:
        out = bytearray(data)
        for place, piece in damage:
            place %= max(len(out), 1)
            out[place : place + len(piece)] = piece
        return bytes(out)

    places = st.one_of(st.integers(0, min(len(data), _HEADER_BYTES)), st.integers(0, len(data)))
    pieces = st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from(_LIES), st.integers(0, 64).map(_length)
    )
    overwritten = st.lists(st.tuples(places, pieces), min_size=1, max_size=3).map(apply)
    cut = st.integers(0, len(data)).map(lambda size: data[:size])
    return st.one_of(overwritten, cut)


def _length(n: int) -> bytes:
    return n.to_bytes(8, "little")


def _damaged(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    end = min(len(data), _HEADER_BYTES) if dice.random() < 0.5 else len(data)
    place = dice.randrange(max(end, 1))
    kind = dice.choice(("bit", "length", "byte", "delete", "double", "swap"))
    out = bytearray(data)
    if kind == "bit":
        bit = dice.randrange(8)
        out[place] ^= 1 << bit
        return f"bit {bit} of byte {place} flipped", bytes(out)
    if kind == "byte":
        out[place] = dice.randrange(256)
        return f"byte {place} set to {out[place]}", bytes(out)
    if kind == "length":
        lie = dice.choice(_LIES)
        out[place : place + 8] = lie
        return f"bytes {place}…{place + 7} set to {lie.hex()}", bytes(out)
    size = dice.randrange(1, 65)
    if kind == "delete":
        del out[place : place + size]
        return f"bytes {place}…{place + size - 1} removed", bytes(out)
    if kind == "double":
        out[place:place] = out[place : place + size]
        return f"bytes {place}…{place + size - 1} doubled", bytes(out)
    other = dice.randrange(max(len(data), 1))
    out[place : place + size], out[other : other + size] = (
        data[other : other + size],
        data[place : place + size],
    )
    return f"{size} bytes at {place} and {other} swapped", bytes(out)

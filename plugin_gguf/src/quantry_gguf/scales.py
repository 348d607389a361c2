"""Where numbers lie in each block type: to refuse NaN scales, and to read files of the other byte order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from quantry import QuantizedTensor
from quantry_gguf.types import BY_NAME

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bad_scale", "check_scales", "swap_blocks", "swap_numbers"]


class Field(NamedTuple):
    """`n` adjacent numbers of `width` bytes from byte `at` of a block. scale: a float that must be finite."""

    at: int
    width: int
    n: int = 1
    scale: bool = False


def _half(at: int) -> Field:
    return Field(at, 2, 1, scale=True)


# llama.cpp ggml/src/ggml-common.h; whatever is missing is single bytes. q5 qh and the words of iq types
# are bytes there too, but read as integers (ggml-quants.c, dequantize_row_*): they follow the byte order.
FIELDS: dict[str, tuple[Field, ...]] = {
    "q4_0": (_half(0),),
    "q4_1": (_half(0), _half(2)),
    "q5_0": (_half(0), Field(2, 4)),
    "q5_1": (_half(0), _half(2), Field(4, 4)),
    "q8_0": (_half(0),),
    "q8_1": (_half(0), _half(2)),
    "q2_k": (_half(80), _half(82)),
    "q3_k": (_half(108),),
    "q4_k": (_half(0), _half(2)),
    "q5_k": (_half(0), _half(2)),
    "q6_k": (_half(208),),
    "q8_k": (Field(0, 4, scale=True), Field(260, 2, 16)),
    "iq2_xxs": (_half(0), *(Field(6 + 8 * i, 4) for i in range(8))),
    "iq2_xs": (_half(0), Field(2, 2, 32)),
    "iq2_s": (_half(0),),
    "iq3_xxs": (_half(0), Field(66, 4, 8)),
    "iq3_s": (_half(0),),
    "iq1_s": (_half(0), Field(34, 2, 8)),
    "iq1_m": (Field(48, 2, 4),),
    "iq4_nl": (_half(0),),
    "iq4_xs": (_half(0), Field(2, 2)),
    "tq1_0": (_half(52),),
    "tq2_0": (_half(64),),
    "mxfp4": (),
    "nvfp4": (),
    "q1_0": (_half(0),),
    "q2_0": (_half(0),),
}
_BLOCKS_PER_STEP = 1 << 15  # torch's grain: one thread, scratch in L1; waking threads costs more
_HIGH = int(sys.byteorder == "little")  # which byte of a 16-bit number holds sign and exponent


def check_scales(qt: QuantizedTensor, first: int = 0) -> str | None:
    """The sentence that names the first block with a NaN or infinite scale, None when all are finite.

    first: where along dimension 0 of the stored tensor `qt` begins. Touches the scale bytes only, so that one
    core checks 10 GB of blocks a second. Layouts other than `ggml` have no scales here.
    """
    if qt.layout.family != "ggml":
        return None
    name: str = qt.layout.type  # type: ignore[attr-defined]
    found = bad_scale(name, qt.buffers["blocks"])
    if found is None:
        return None
    place = []
    for size in (qt.shape[-1] // BY_NAME[name].block, *reversed(qt.shape[1:-1])):
        found, index = divmod(found, size)
        place.append(index)
    if len(qt.shape) > 1:
        place.append(found + first)
    names = ("block", "row", "expert", "group")  # innermost first, as place
    where = ", ".join(reversed([f"{what} {index}" for what, index in zip(names, place, strict=False)]))
    return f"{where}: the {name} scale is NaN or infinite"


def bad_scale(name: str, blocks: Tensor) -> int | None:
    """Index of the first block with a scale that is not finite (ggml.c, `ggml_validate_row_data`), or None.

    blocks: uint8, whole blocks of type `name`, any shape.
    """
    flat = blocks.reshape(-1, BY_NAME[name].block_bytes)
    for start in range(0, len(flat), _BLOCKS_PER_STEP):
        part = flat[start : start + _BLOCKS_PER_STEP]
        for bad in _not_finite(name, part):
            if bad.any():
                return start + int(bad.nonzero()[0, 0])
    return None


def _not_finite(name: str, flat: Tensor) -> list[Tensor]:
    """Masks [n] of blocks whose exponent bits are all ones."""
    if name == "mxfp4":
        return [flat[:, 0] == 0xFF]
    if name == "iq1_m":  # d is spread over the top four bits of four u16; its exponent sits in the last two
        return [(flat[:, 54 + _HIGH] & 0x70 == 0x70) & (flat[:, 52 + _HIGH] & 0xC0 == 0xC0)]
    masks = []
    for field in FIELDS[name]:
        if field.scale and field.width == 2:
            masks.append(flat[:, field.at + _HIGH] & 0x7C == 0x7C)
        elif field.scale:
            high, low = (3, 2) if _HIGH else (0, 1)
            masks.append((flat[:, field.at + high] & 0x7F == 0x7F) & (flat[:, field.at + low] >= 0x80))
    return masks


def swap_blocks(name: str, blocks: Tensor) -> Tensor:
    """A copy with every multi-byte number of every block in the other byte order."""
    flat = blocks.reshape(-1, BY_NAME[name].block_bytes).clone()
    for at, width, n, _ in FIELDS[name]:
        for start in range(at, at + width * n, width):
            flat[:, start : start + width] = flat[:, start : start + width].flip(1)
    return flat.view(blocks.shape)


def swap_numbers(raw: Tensor, width: int) -> Tensor:
    """A copy of uint8 `raw` [n] with each `width` bytes reversed."""
    return raw.view(-1, width).flip(1).reshape(-1)

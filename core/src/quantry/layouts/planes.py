"""Codes and scales of 16 rows stored together: the bit moves behind the panel layouts, and their inverses.

```
cell = 64 bytes = 16 lanes × 4 bytes; lane r belongs to row 16p + r of panel p; cells follow along K
plane of w bits: field f (bits wf … wf+w-1) of byte b of a lane of cell c = column (8/w · c + f) · 4 + b
a code of 3, 5, 6 or 7 bits is split into planes, low bits first: 2+1, 4+1, 4+2, 4+2+1
```
N is padded to whole panels and K to 32 columns, where every plane has whole cells; padding is zero.
Source of the cell: one vector of any instruction set holds the same columns of 16 rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry.layout import BufferSpec, Shape
from quantry.layouts.grid import ceil_div

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHUNK",
    "PLANES",
    "ROWS",
    "deinterleave",
    "interleave",
    "pack_planes",
    "padded",
    "plane_specs",
    "unpack_planes",
]

ROWS = 16
CHUNK = 32

_LANE = 4  # bytes of a lane, and columns a field number apart

PLANES: dict[int, dict[str, int]] = {
    1: {"codes": 1},
    2: {"codes": 2},
    3: {"codes": 2, "high": 1},
    4: {"codes": 4},
    5: {"codes": 4, "high": 1},
    6: {"codes": 4, "high": 2},
    7: {"codes": 4, "high": 2, "top": 1},
    8: {"codes": 8},
}
"""Bits of a code → buffer and width of each plane, low bits first."""


def padded(size: int, unit: int) -> int:
    """`size` rounded up to a multiple of `unit`.

    >>> padded(33, 32)
    64
    """
    return ceil_div(size, unit) * unit


def plane_specs(bits: int, shape: Shape) -> dict[str, BufferSpec]:
    """The plane buffers uint8 [*, P, bytes] of codes [*shape].

    >>> {name: spec.shape for name, spec in plane_specs(5, (17, 40)).items()}
    {'codes': (2, 512), 'high': (2, 128)}
    """
    *lead, n, k = shape
    column_bytes = ROWS * padded(k, CHUNK) // 8  # of one bit
    return {
        name: BufferSpec("u8", (*lead, ceil_div(n, ROWS), column_bytes * width))
        for name, width in PLANES[bits].items()
    }


def pack_planes(codes: Tensor, bits: int) -> dict[str, Tensor]:
    """Codes uint8 [*, N, K], each below 2^bits, as planes."""
    import torch

    *lead, n, k = codes.shape
    filled = torch.nn.functional.pad(codes, (0, padded(k, CHUNK) - k, 0, padded(n, ROWS) - n))
    found, shift = {}, 0
    for name, width in PLANES[bits].items():
        fields = 8 // width
        # [*, P, 16, cells, fields, 4] → [*, P, cells, 16, 4, fields]
        part = filled.view(
            *lead, ceil_div(n, ROWS), ROWS, padded(k, CHUNK) // (_LANE * fields), fields, _LANE
        )
        part = (part >> shift & (1 << width) - 1).movedim(-4, -3).transpose(-1, -2)
        plane = part[..., 0].contiguous()
        for field in range(1, fields):
            plane |= part[..., field] << width * field
        found[name] = plane.flatten(-3)
        shift += width
    return found


def unpack_planes(planes: Mapping[str, Tensor], bits: int, n: int, k: int) -> Tensor:
    """Codes uint8 [*, n, k] of planes; padding is dropped."""
    import torch

    codes, shift = None, 0
    for name, width in PLANES[bits].items():
        fields, plane = 8 // width, planes[name]
        lead, panels = plane.shape[:-2], plane.shape[-2]
        cells = plane.view(*lead, panels, padded(k, CHUNK) // (_LANE * fields), ROWS, _LANE)
        part = torch.stack([cells >> width * field & (1 << width) - 1 for field in range(fields)], -2)
        # [*, P, cells, 16, fields, 4] → [*, P · 16, cells · fields · 4]
        part = part.movedim(-3, -4).reshape(*lead, panels * ROWS, padded(k, CHUNK))
        codes = part if codes is None else codes.bitwise_or_(part << shift)
        shift += width
    assert codes is not None  # every width has a first plane
    return codes[..., :n, :k].contiguous()


def interleave(values: Tensor) -> Tensor:
    """Numbers [*, N, G] of rows and groups as [*, P, G, 16]; rows that do not exist are 0."""
    import torch

    n = values.shape[-2]
    if n % ROWS:
        values = torch.nn.functional.pad(values, (0, 0, 0, padded(n, ROWS) - n))
    lead, groups = values.shape[:-2], values.shape[-1]
    return values.reshape(*lead, ceil_div(n, ROWS), ROWS, groups).transpose(-1, -2).contiguous()


def deinterleave(values: Tensor, n: int) -> Tensor:
    """The inverse: [*, P, G, 16] → [*, n, G]."""
    return values.transpose(-1, -2).flatten(-3, -2)[..., :n, :].contiguous()

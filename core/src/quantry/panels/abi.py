"""Weights in panels as the C functions of quantry-kernels take them (quantry/grouped/abi.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_int, c_int32, c_int64, c_void_p
from typing import TYPE_CHECKING, Any, ClassVar

from quantry.errors import ShapeError
from quantry.layout import Layout, Shape
from quantry.layouts import AffinePanel, CodebookPanel, FloatPanel, GroupedAffine
from quantry.layouts.grid import ceil_div
from quantry.layouts.panel import PanelLayout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KERNELS", "REPACKING", "GroupedWeight", "describe", "int8_block", "panel_layout"]

_P, _I, _L = c_void_p, c_int, c_int64

# argument types by function, as declared in quantry/grouped/entry.h
KERNELS: Mapping[str, Sequence[Any]] = {
    "grouped_check": [_P],
    "grouped_scratch_list": [_P, _I, _L, _I, _P],
    "grouped_linear": [_P, _I, _L, _P, _L, _P, _P, _I, _P, _L],
    "grouped_linear_list": [_P, _I, _I, _L, _P, _L, _P, _P, _I, _P, _L],
    "grouped_experts_scratch": [_P, _L, _L, _L, _I, _P],
    "grouped_experts": [_P, _L, _I, _L, _L, _I, _P, _L, _P, _P, _P, _I, _P, _L],
    "grouped_dx_scratch": [_P, _L, _I, _P],
    "grouped_dx": [_P, _I, _L, _P, _L, _P, _I, _P, _L],
    "grouped_embedding": [_P, _I, _P, _L, _P, _I],
}

# quantry/grouped/repack_entry.h
REPACKING: Mapping[str, Sequence[Any]] = {
    "grouped_pack": [_I, _I, _I, _L, _L, _L, _L, _P, _L, _P, _P, _P, _L, _I],
    "grouped_unpack": [_I, _I, _I, _L, _L, _L, _L, _P, _L, _P, _P, _P, _L, _I],
}

_FAMILIES: tuple[type[PanelLayout], ...] = (AffinePanel, CodebookPanel, FloatPanel)
_SCALES = ("f32", "f16", "bf16", "nested", "e8m0", "e4m3")
_ELEMENTS = ("nf4", "fp4", "iq4_nl", "e2m1", "e4m3", "e5m2")

_LEAST_UNIT, _MOST_UNIT = 16, 128  # quantry/grouped/weight.h: columns that share one product by a scale
_LEAST_BLOCK = 32  # columns that share a rounding of x

# buffer → the fields of its address and its bytes; a second name is an alternative
_FIELDS = {
    "codes": ("codes", "codes_bytes"),
    "high": ("high", "high_bytes"),
    "top": ("top", "top_bytes"),
    "scales": ("scales", "scales_bytes"),
    "zeros": ("zeros", "zeros_bytes"),
    "biases": ("zeros", "zeros_bytes"),
    "nested_scales": ("nested", "nested_bytes"),
    "nested_offset": ("offset", None),
    "outer": ("outer", None),
    "perm": ("perm", None),
}


class GroupedWeight(ctypes.Structure):
    """abi.h, QuantryGrouped: one weight, or the first of a stack."""

    _fields_: ClassVar = [
        *(
            (n, c_int32)
            for n in ("target", "family", "exact", "bits", "zero", "axis_out", "element", "scale")
        ),
        *((name, c_int64) for name in ("rows", "columns", "group", "block_rows")),
        *((name, c_void_p) for name in dict.fromkeys(address for address, _ in _FIELDS.values())),
        *((name, c_int64) for name in dict.fromkeys(size for _, size in _FIELDS.values() if size)),
    ]


def panel_layout(layout: Layout) -> PanelLayout:
    """`layout` for a type checker: kernels of the panel families are asked about nothing else."""
    assert isinstance(layout, PanelLayout)
    return layout


def describe(
    target: int, exact: bool, layout: PanelLayout, shape: Shape, buffers: Mapping[str, Tensor]
) -> GroupedWeight:
    """The description of a weight [N, K] or of a stack of them; good as long as its buffers live.

    Raises ShapeError where `perm` holds what is no column: native code would follow it.
    """
    *lead, n, k = shape
    count = max(lead[0], 1) if lead else 1
    described = GroupedWeight(target=target, exact=exact, rows=n, columns=k, block_rows=1)
    described.family = _FAMILIES.index(type(layout))
    described.scale = _SCALES.index(layout.scale)  # type: ignore[attr-defined]
    if isinstance(layout, AffinePanel):
        described.bits, described.zero = layout.bits, GroupedAffine.ZEROS.index(layout.zero)
        described.axis_out = layout.axis == "out"
        described.group = layout.group or (max(n, _LEAST_UNIT) if layout.axis == "out" else _whole(k))
    elif isinstance(layout, CodebookPanel):
        described.element, described.group = _ELEMENTS.index(layout.table), layout.group
    elif isinstance(layout, FloatPanel):
        described.element, described.block_rows = _ELEMENTS.index(layout.element), layout.block[0]
        described.group = layout.block[1] or _whole(k)
    for name, buffer in buffers.items():
        address, size = _FIELDS[name]
        setattr(described, address, buffer.data_ptr() or None)
        if size:
            setattr(described, size, buffer.nbytes // count)
    if "perm" in buffers and k:
        _check_columns(buffers["perm"], k)
    return described


def int8_block(layout: PanelLayout) -> int:
    """Columns of x that share one int8 scale: a power of two from 32 to 128 that divides the group."""
    group = layout.block[1] if isinstance(layout, FloatPanel) else layout.group  # type: ignore[attr-defined]
    unit = _LEAST_UNIT
    while unit < _MOST_UNIT and group % (2 * unit) == 0:  # 0, the whole row, is a multiple of all
        unit *= 2
    return max(unit, _LEAST_BLOCK)


def _whole(columns: int) -> int:
    """The group of a whole row: at least its columns, in units of the largest size."""
    return max(ceil_div(columns, _MOST_UNIT), 1) * _MOST_UNIT


def _check_columns(perm: Tensor, columns: int) -> None:
    low, high = (int(bound) for bound in perm.aminmax())
    if low < 0 or high >= columns:
        raise ShapeError(f"perm holds {low if low < 0 else high}, columns are 0 … {columns - 1}")

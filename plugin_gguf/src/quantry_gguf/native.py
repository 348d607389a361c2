"""The plugin's native CPU library: the types of its C functions, and the functions every module calls."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from typing import ClassVar

from quantry import NativeLibrary

__all__ = [
    "DTYPES",
    "LIBRARY",
    "BoundLinear",
    "TARGETS",
    "dtype_reason",
    "fail",
    "library",
    "rows_of",
    "scratch",
    "set_target",
    "span",
    "target",
    "threads",
    "why_not",
]

_P, _I, _L = c_void_p, c_int, c_int64

# argument types by function, as declared in native/cpu/entry.cpp
_SIGNATURES = {
    "type_sizes": [_I, _P],
    "pack": [_I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _I],
    "unpack": [_I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _I],
    "linear_scratch": [_P, _I, _L, _I, _P],
    "linear": [_P, _I, _I, _L, _P, _L, _P, _P, _I, _P, _L],
    "linear_one": [_P, _I, _L, _P, _L, _P, _P, _I, _P, _L],
    "experts_scratch": [_P, _L, _L, _L, _I, _P],
    "experts": [_P, _L, _I, _L, _L, _I, _P, _L, _P, _P, _P, _I, _P, _L],
    "linear_dx_scratch": [_I, _L, _L, _I, _P],
    "linear_dx": [_I, _I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _P, _I, _P, _L],
    "embedding": [_I, _I, _I, _P, _L, _L, _L, _P, _P, _P, _L, _P, _I],
    "embedding_rows": [_I, _I, _I, _P, _L, _L, _L, _P, _L, _P, _I],
    "encode": [_I, _I, _I, _P, _L, _P, _P, _L, _L, _P, _I],  # encode_entry.cpp
    "encode_grid": [_I, _I, _I, _P, _L, _P, _P, _P, _L, _L, _P, _I],  # encode_grid_entry.cpp
    "grid_tables": [_I, _P, _L, _P],
    "dense_scratch": [_I, _I, _L, _L, _P],
    "dense": [_I, _I, _I, _L, _L, _L, _P, _L, _P, _L, _P, _P, _I, _P, _L],
    "low_rank": [_P, _P, _P, _I],  # low_rank_entry.cpp
    "probe_fill": [_P, _L, _I],  # probe_entry.cpp
    "probe_read": [_I, _P, _L, _I, _P],
    "probe_peak": [_I, _I, _L, _I, _P],
}


class BoundLinear(ctypes.Structure):
    """ops.h, QuantryBoundLinear: one weight as the linear functions take it."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int32) for name in ("target", "type", "exact", "unused")),
        *((name, c_int64) for name in ("rows", "columns")),
        *((name, c_void_p) for name in ("codes", "high", "meta")),
        ("plane_bytes", c_int64),
    ]


LIBRARY = NativeLibrary("quantry_gguf", "quantry_gguf_cpu", "quantry_gguf", "quantry-gguf", _SIGNATURES)

TARGETS = NativeLibrary.TARGETS
DTYPES = NativeLibrary.DTYPES

library = LIBRARY.library
why_not = LIBRARY.why_not
target = LIBRARY.target
set_target = LIBRARY.set_target
threads = LIBRARY.threads
scratch = LIBRARY.scratch
fail = LIBRARY.fail
dtype_reason = LIBRARY.dtype_reason
rows_of = LIBRARY.rows_of
span = LIBRARY.span

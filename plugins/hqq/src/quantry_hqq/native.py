"""The plugin's native CPU library and the types of its C functions."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

from quantry import NativeLibrary

__all__ = ["LIBRARY", "MISTRALRS", "PACKAGE"]

MISTRALRS, PACKAGE = 0, 1  # native/cpu/encode.h, HqqRule

_P, _I, _L = c_void_p, c_int, c_int64

_SIGNATURES = {
    "encode": [_I, _I, _I, _I, _P, _L, _P, _L, _P, _P, _P, _P, _P, _I],  # native/cpu/encode_entry.cpp
}

LIBRARY = NativeLibrary("quantry_hqq", "quantry_hqq_cpu", "quantry_hqq", "quantry-hqq", _SIGNATURES)

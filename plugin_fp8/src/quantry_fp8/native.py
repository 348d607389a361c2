"""The plugin's native CPU library and the types of its C functions."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

from quantry import NativeLibrary

__all__ = ["CHANNEL", "F8Q8", "LIBRARY", "TENSOR"]

TENSOR, CHANNEL, F8Q8 = 0, 1, 2  # native/cpu/encode_entry.cpp

_P, _I, _L = c_void_p, c_int, c_int64

_SIGNATURES = {
    "encode": [_I, _I, _I, _P, _L, _L, _P, _P, _P, _P, _I],  # native/cpu/encode_entry.cpp
}

LIBRARY = NativeLibrary("quantry_fp8", "quantry_fp8_cpu", "quantry_fp8", "quantry-fp8", _SIGNATURES)

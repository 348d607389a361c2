"""The plugin's native CPU library, and the types of its own C function: the core declares those of panels."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

from quantry import NativeLibrary

__all__ = ["LIBRARY"]

_P, _I, _L = c_void_p, c_int, c_int64

LIBRARY = NativeLibrary(
    "quantry_bnb",
    "quantry_bnb_cpu",
    "quantry_bnb",
    "quantry-bnb",
    {"encode": [_I, _I, _I, _P, _L, _P, _P, _P, _L, _L, _P, _I]},  # native/cpu/encode_entry.cpp
)

"""CPU kernels of the ggml types that stay in file order: IQ1, IQ2, IQ3, TQ1_0, Q8_K.

A block is decoded to signed bytes and small integer scales, exactly; few rows of x multiply it row by row,
many share a decoded slab. Types that have a panel packing are declined: it is faster.
"""

from __future__ import annotations

from quantry import Kernel
from quantry_gguf.kernels import (
    PanelExact,
    PanelExpertsExact,
    PanelExpertsInt8,
    PanelInt8,
    PanelLinearDx,
)

__all__ = ["KERNELS"]


class RowsInt8(PanelInt8):
    """ggml's own arithmetic: activations rounded to int8, integer dot products, f32 between blocks."""

    name = "gguf.rows_int8"
    family = "ggml"
    priority = 15
    unpacked = True


class RowsExact(PanelExact):
    """Activations as given, weights decoded to their exact f32 values, f32 sums."""

    name = "gguf.rows_exact"
    family = "ggml"
    priority = 5
    unpacked = True


class RowsExpertsInt8(PanelExpertsInt8):
    """RowsInt8 for each expert."""

    name = "gguf.rows_experts_int8"
    family = "ggml"
    priority = 15
    unpacked = True


class RowsExpertsExact(PanelExpertsExact):
    """RowsExact for each expert."""

    name = "gguf.rows_experts_exact"
    family = "ggml"
    priority = 5
    unpacked = True


class RowsLinearDx(PanelLinearDx):
    """The backward to x, exact."""

    name = "gguf.rows_dx"
    family = "ggml"
    priority = 5
    unpacked = True


KERNELS: list[Kernel] = [RowsInt8(), RowsExact(), RowsExpertsInt8(), RowsExpertsExact(), RowsLinearDx()]

"""Quantizers to groups of 64 columns with a scale and a bias: bytes equal to MLX's, or to mistral.rs'."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry import GroupedAffine, Layout, Quantizer, Refused, RowQuantizer, Shape
from quantry_afq_metal.native import LIBRARY

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GROUP", "QUANTIZERS", "AfqQuantizer", "MinMaxQuantizer"]

GROUP = 64
"""Columns of a group; the last dimension of a weight must be a multiple."""


class AfqQuantizer(RowQuantizer):
    """AFQ as MLX makes it on the CPU (mlx: mlx/backend/cpu/quantized.cpp); scales have the weight's type.

    Code 0 is the extreme of larger magnitude and the scale is fitted so that a code lies next to the value 0:
    the better rule where groups hold zeros or small values among large ones, and the one MLX itself uses.
    Take a `_minmax` type for files with the bytes that mistral.rs writes.

    With importance the scale and bias of each group are searched from there by weighted least squares, for
    the least Σ importance · (weight − dequantized)² of what is stored; a group whose columns all have
    importance 0 stays as it is without.
    """

    takes_importance: ClassVar[bool] = True
    native_on: ClassVar[tuple[str, ...]] = ("mps",)
    bits: ClassVar[int]
    rule: ClassVar[int] = 0  # AfqRule, native/cpu/encode.h

    def layout_for(self, shape: Shape, dtype: str) -> GroupedAffine:
        """`affine:b<bits>,g64,in,bias,<dtype>`; f32 scales for what is no float."""
        scale = next((name for name in GroupedAffine.SCALES if name == dtype), GroupedAffine.SCALES[-1])
        return GroupedAffine(self.bits, GROUP, "in", "bias", scale)

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """Refuses what is no float matrix of whole groups, or a stack of them."""
        reason = super().why_not(shape, dtype)
        if reason is None and shape[-1] % GROUP:
            reason = f"{self.name} needs columns that are a multiple of {GROUP}, got {shape[-1]}"
        return reason

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Codes, scales and biases, on as many threads as torch uses.

        A group whose range overflows float32 counts as not finite: no scale could hold it.
        """
        bad = c_int64(-1)
        status = LIBRARY.function("encode")(
            LIBRARY.target(), self.bits, self.rule, LIBRARY.DTYPES[rows.dtype],
            rows.data_ptr(), rows.shape[1], None if importance is None else importance.data_ptr(),
            *(out[name].data_ptr() for name in ("codes", "scales", "biases")), *rows.shape,
            addressof(bad), LIBRARY.threads(),
        )  # fmt: skip
        if status:
            LIBRARY.fail(status, f"encoding {list(rows.shape)} to {self.name}")
        return Refused.at(bad.value)


class MinMaxQuantizer(AfqQuantizer):
    """AFQ as mistral.rs makes it on the CPU (mistralrs-quant/src/afq/ops.rs): from the least value up.

    UQFF files of mistral.rs always hold these bytes: take it to reproduce them. The value 0 is rounded like
    any other, so that MLX's rule loses less in groups with many zeros, and at 2 bits; from 4 bits on this one
    is 1 to 2 % better on normal weights.
    """

    rule = 1


class _Row(NamedTuple):
    bits: int
    sensitive: str | None
    errors: tuple[float, float | None]  # of normal weights, by MLX's rule and by mistral.rs'


# promotion of embedding and output head as in mistral.rs; 5 bits, which it lacks, as its neighbours
_TABLE = (
    _Row(2, "afq6", (0.394, 0.45)),
    _Row(3, "afq6", (0.19, 0.192)),
    _Row(4, "afq6", (0.0909, 0.0897)),
    _Row(5, "afq8", (0.0441, None)),
    _Row(6, "afq8", (0.0217, 0.0213)),
    _Row(8, None, (0.00537, 0.00527)),
)


def _quantizer(row: _Row, minmax: bool) -> Quantizer:
    suffix = "_minmax" if minmax else ""
    base = MinMaxQuantizer if minmax else AfqQuantizer
    attributes = {
        "name": f"afq{row.bits}{suffix}",
        "bits": row.bits,
        "width": None if minmax else row.bits,
        "sensitive": row.sensitive and row.sensitive + suffix,
        "expected_error": row.errors[minmax],
        "__doc__": f"{row.bits} bits. {base.__doc__}",
    }
    made: Quantizer = type(f"Afq{row.bits}{suffix.title().replace('_', '')}", (base,), attributes)()
    return made


QUANTIZERS = [
    *(_quantizer(row, minmax=False) for row in _TABLE),
    *(_quantizer(row, minmax=True) for row in _TABLE if row.bits != 5),
]

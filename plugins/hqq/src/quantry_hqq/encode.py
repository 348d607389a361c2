"""Quantizers: mistral.rs' HQQ across rows, and the hqq package's along rows."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry import GroupedAffine, Layout, MatrixQuantizer, Quantizer, Refused, Shape
from quantry_hqq.native import LIBRARY, MISTRALRS, PACKAGE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GROUP", "QUANTIZERS", "HqqQuantizer"]

GROUP = 64


class HqqQuantizer(MatrixQuantizer):
    """One width of one rule; subclasses differ by the class attributes in `_TABLE` only.

    The zero of each group of 64 weights is moved until the mean error of the whole matrix stops falling, in
    float32 (mobiusml/hqq, core/optimize.py, optimize_weights_proximal_legacy). axis "out": as mistral.rs
    does, 10 steps on the columns of W.view(64, N*K/64); its bytes. axis "in": as hqq 0.2.8 does on a CPU with
    axis=1, 20 steps on 64 neighbours, the first zero of 4-bit codes rounded.

    With importance the scale and zero of each group are searched on from there by weighted least squares, for
    the least Σ importance · (weight − dequantized)²; across rows each weight has its own column's. A group
    whose columns all have importance 0 stays as it is without.
    """

    takes_importance: ClassVar[bool] = True
    bits: ClassVar[int]
    rule: ClassVar[int]

    def layout_for(self, shape: Shape, dtype: str) -> GroupedAffine:
        """`affine:b<bits>,g64,…,float,f32`."""
        return GroupedAffine(self.bits, GROUP, "out" if self.rule == MISTRALRS else "in", "float", "f32")

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """None for float matrices that divide into groups of 64; along rows the columns must."""
        reason = super().why_not(shape, dtype)
        if reason is None and self.rule == PACKAGE and shape[-1] % GROUP:
            reason = f"rows of {shape[-1]} do not divide into groups of {GROUP}"
        return reason

    def encode(
        self, matrix: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Codes, scales and zeros, on as many threads as torch uses; their number changes no bit."""
        bad, beyond = c_int64(-1), c_int64(-1)
        status = LIBRARY.library().quantry_hqq_encode(
            LIBRARY.target(), self.rule, self.bits, LIBRARY.DTYPES[matrix.dtype], matrix.data_ptr(),
            matrix.numel() // GROUP, None if importance is None else importance.data_ptr(), matrix.shape[1],
            out["codes"].data_ptr(), out["scales"].data_ptr(), out["zeros"].data_ptr(), addressof(bad),
            addressof(beyond), LIBRARY.threads(),
        )  # fmt: skip
        if status:
            LIBRARY.fail(status, f"encoding {list(matrix.shape)} to {self.name}")
        if bad.value >= 0:
            return Refused(bad.value)
        if beyond.value >= 0:
            return Refused(beyond.value, "the scale or the zero of its group leaves float32")
        return None


class _Row(NamedTuple):
    name: str
    bits: int
    rule: int
    expected_error: float
    width: int | None = None


# expected_error: of normal weights of deviation 0.05; large ones feel the p-norm more
_TABLE = (
    _Row("hqq4", 4, MISTRALRS, 0.0859, 4),
    _Row("hqq8", 8, MISTRALRS, 0.00506, 8),
    _Row("hqq1_axis1", 1, PACKAGE, 1.06),
    _Row("hqq2_axis1", 2, PACKAGE, 0.431),
    _Row("hqq3_axis1", 3, PACKAGE, 0.184),
    _Row("hqq4_axis1", 4, PACKAGE, 0.0871),
    _Row("hqq8_axis1", 8, PACKAGE, 0.00506),
)


def _quantizer(row: _Row) -> Quantizer:
    attributes = {**row._asdict(), "__doc__": f"HQQ of {row.bits} bits."}
    cls = type(row.name.title().replace("_", ""), (HqqQuantizer,), attributes)
    made: Quantizer = cls()
    return made


QUANTIZERS = [_quantizer(row) for row in _TABLE]

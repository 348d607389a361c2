"""Blocks of 32 columns with a power of two as scale: MXFP4 as in mistral.rs, MXFP8 as in OCP 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, ClassVar

from quantry import Layout, Refused, RowQuantizer, ScaledFloat, Shape
from quantry_mx.native import LIBRARY

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK", "QUANTIZERS", "Mxfp4Quantizer", "Mxfp8Quantizer"]

BLOCK = 32
"""Columns of a block; the last dimension of a weight must be a multiple."""


class _MxQuantizer(RowQuantizer):
    """What both have in common."""

    layout: ClassVar[ScaledFloat]
    element: ClassVar[int]  # MxElement, native/cpu/encode.h

    def layout_for(self, shape: Shape, dtype: str) -> ScaledFloat:
        """The same for every shape and source type."""
        return self.layout

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """Refuses what is no float matrix of whole blocks."""
        reason = super().why_not(shape, dtype)
        if reason is None and shape[-1] % BLOCK:
            reason = f"{self.name} needs columns that are a multiple of {BLOCK}, got {shape[-1]}"
        return reason

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Codes and scales, on as many threads as torch uses."""
        bad = c_int64(-1)
        status = LIBRARY.function("encode")(
            LIBRARY.target(), self.element, LIBRARY.DTYPES[rows.dtype], rows.data_ptr(), rows.shape[1],
            out["codes"].data_ptr(), out["scales"].data_ptr(), *rows.shape, addressof(bad), LIBRARY.threads(),
        )  # fmt: skip
        if status:
            LIBRARY.fail(status, f"encoding {list(rows.shape)} to {self.name}")
        return Refused.at(bad.value)


class Mxfp4Quantizer(_MxQuantizer):
    """MXFP4 with mistral.rs' bytes (mistralrs-quant/src/mxfp4/mod.rs, quantize).

    The scale is 2^floor(log2(largest / 6)), so that the largest elements of a block may be cut to 6 of it;
    elements round to the nearest e2m1 number, halfway cases to the larger. Stacks of experts are declined, as
    in mistral.rs, which stores them only where the checkpoint holds MXFP4 already.
    """

    name = "mxfp4"
    layout = ScaledFloat("e2m1", (1, BLOCK), "e8m0")
    element = 0
    expected_error = 0.178  # at a deviation of 0.05; 0.177 to 0.213 as it moves through an octave

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """Refuses stacks of matrices too."""
        if len(shape) > 2:
            return "mistral.rs makes mxfp4 of matrices, not of stacks of experts; take afq4, or mxfp8"
        return super().why_not(shape, dtype)


class Mxfp8Quantizer(_MxQuantizer):
    """MXFP8 by the rule of the OCP microscaling specification 1.0, section 6.3.

    The scale is 2^(floor(log2(largest)) − 8), an all-zero block's is 1; elements round to e4m3, half to even,
    beyond 448 to 448. UQFF has no tag for it.
    """

    name = "mxfp8"
    layout = ScaledFloat("e4m3", (1, BLOCK), "e8m0")
    element = 1
    expected_error = 0.0312  # 0.0286 to 0.0312


QUANTIZERS = [Mxfp4Quantizer(), Mxfp8Quantizer()]

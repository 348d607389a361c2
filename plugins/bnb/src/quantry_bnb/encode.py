"""Blocks of 64 columns with a float32 scale and codes into 16 numbers: bitsandbytes' NF4 and FP4."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, ClassVar

from quantry import GroupedCodebook, Layout, Refused, RowQuantizer, Shape
from quantry_bnb.native import LIBRARY

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK", "QUANTIZERS", "Fp4Quantizer", "Nf4Quantizer"]

BLOCK = 64
"""Columns of a block; the last dimension of a weight must be a multiple."""


class _CodebookQuantizer(RowQuantizer):
    """What both have in common.

    Without importance the codes and scales of bitsandbytes 0.50 (`quantize_4bit`, blocksize 64, on the CPU):
    the scale is the largest magnitude of a block, each weight takes the nearest number, a weight halfway the
    lower one. With importance the scale is searched that makes the block's weighted squared error least.
    """

    takes_importance: ClassVar[bool] = True
    layout: ClassVar[GroupedCodebook]
    table: ClassVar[int]  # BnbTable, native/cpu/encode.h

    def layout_for(self, shape: Shape, dtype: str) -> GroupedCodebook:
        """The same for every shape and source type."""
        return self.layout

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """Refuses what is no float matrix of whole blocks, or a stack of them."""
        if len(shape) > 1 and shape[-1] % BLOCK:
            return f"{self.name} needs columns that are a multiple of {BLOCK}, got {shape[-1]}"
        return super().why_not(shape, dtype)

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Codes and scales, on as many threads as torch uses."""
        bad = c_int64(-1)
        status = LIBRARY.function("encode")(
            LIBRARY.target(), self.table, LIBRARY.DTYPES[rows.dtype], rows.data_ptr(), rows.shape[1],
            None if importance is None else importance.data_ptr(),
            out["codes"].data_ptr(), out["scales"].data_ptr(), *rows.shape, addressof(bad), LIBRARY.threads(),
        )  # fmt: skip
        if status:
            LIBRARY.fail(status, f"encoding {list(rows.shape)} to {self.name}")
        return Refused.at(bad.value)


class Nf4Quantizer(_CodebookQuantizer):
    """NF4: 16 quantiles of the normal distribution, 4.5 bits a weight."""

    name = "nf4"
    layout = GroupedCodebook("nf4", BLOCK, "f32")
    table = 0
    expected_error = 0.092


class Fp4Quantizer(_CodebookQuantizer):
    """FP4: a sign, two bits of exponent and one of mantissa, in bitsandbytes' own order."""

    name = "fp4"
    layout = GroupedCodebook("fp4", BLOCK, "f32")
    table = 1
    expected_error = 0.122


QUANTIZERS = [Nf4Quantizer(), Fp4Quantizer()]

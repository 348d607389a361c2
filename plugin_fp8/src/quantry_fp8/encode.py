"""Quantizers: e4m3 with a scale per tensor or per row, and f8q8."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, ClassVar

from quantry import Layout, MatrixQuantizer, Quantizer, Refused, RowQuantizer, ScaledFloat, Shape
from quantry_fp8.f8q8 import F8q8
from quantry_fp8.native import CHANNEL, F8Q8, LIBRARY, TENSOR

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "Fp8", "Fp8Channel", "Fp8Q8"]


class Fp8(MatrixQuantizer):
    """mistral.rs' fp8: one scale a matrix, computed in bfloat16, that takes 416 for the largest e4m3 number.

    s = min(bf16(bf16(1 / max|w|) * 416), 416), code = e4m3(bf16(bf16(w) * s)), scale = 1 / s. Weights below
    about 2^-10 / s become 0. Source: mistral.rs, mistralrs-quant/src/fp8/quantize.rs.
    """

    name: ClassVar[str] = "fp8"
    width: ClassVar[int | None] = 8
    expected_error: ClassVar[float | None] = 0.0268
    native_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def layout_for(self, shape: Shape, dtype: str) -> ScaledFloat:
        """`float:e4m3,0x0,f32`."""
        return ScaledFloat("e4m3", (0, 0), "f32")

    def encode(
        self, matrix: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Codes and the scale. Refuses weights whose scale or largest number leaves float32."""
        bad, beyond = _encode(TENSOR, matrix, out["codes"], out["scales"])
        return _refused(bad, beyond, "beyond what bfloat16 and one float32 scale can hold")


class Fp8Channel(RowQuantizer):
    """e4m3 with a float32 scale max|row| / 448 for each row. A scale is never below 2^-126."""

    name: ClassVar[str] = "fp8_channel"
    expected_error: ClassVar[float | None] = 0.0264
    native_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def layout_for(self, shape: Shape, dtype: str) -> ScaledFloat:
        """`float:e4m3,1x0,f32`."""
        return ScaledFloat("e4m3", (1, 0), "f32")

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Codes and scales."""
        return Refused.at(_encode(CHANNEL, rows, out["codes"], out["scales"])[0])


class Fp8Q8(MatrixQuantizer):
    """mistral.rs' f8q8: d = max|block| / 127, codes w / d, half away from zero, the scale e4m3(416 d).

    Codes are made with the exact d. Where 416 d is below 2^-10, the block becomes 0; where it passes 464,
    mistral.rs would store too small a scale: refused. Source: mistral.rs, mistralrs-quant/src/f8q8/mod.rs.
    """

    name: ClassVar[str] = "f8q8"
    width: ClassVar[int | None] = 8
    expected_error: ClassVar[float | None] = 0.0259

    def layout_for(self, shape: Shape, dtype: str) -> F8q8:
        """`f8q8:`."""
        return F8q8()

    def encode(
        self, matrix: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Blocks. Refuses weights above 141.6, which no e4m3 scale reaches."""
        bad, beyond = _encode(F8Q8, matrix, out["blocks"], None)
        return _refused(bad, beyond, "the scale of an f8q8 block reaches 141.6 at most")


def _encode(kind: int, matrix: Tensor, out: Tensor, scales: Tensor | None) -> tuple[int, int]:
    bad, beyond = c_int64(-1), c_int64(-1)
    status = LIBRARY.library().quantry_fp8_encode(
        LIBRARY.target(), kind, LIBRARY.DTYPES[matrix.dtype], matrix.data_ptr(), *matrix.shape,
        out.data_ptr(), None if scales is None else scales.data_ptr(), addressof(bad), addressof(beyond),
        LIBRARY.threads(),
    )  # fmt: skip
    if status:
        LIBRARY.fail(status, f"encoding {list(matrix.shape)}")
    return bad.value, beyond.value


def _refused(bad: int, beyond: int, reason: str) -> Refused | None:
    if bad >= 0:
        return Refused(bad)
    return Refused(beyond, reason) if beyond >= 0 else None


QUANTIZERS: list[Quantizer] = [Fp8(), Fp8Channel(), Fp8Q8()]

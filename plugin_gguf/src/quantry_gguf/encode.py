"""Quantizers whose bytes equal llama.cpp's, of all ggml types but the grid types (ggml-quants.c)."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, NamedTuple

from quantry import Layout, Quantizer, Refused, RowQuantizer, Shape
from quantry_gguf import native
from quantry_gguf.layout import GgmlBlocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "GgmlQuantizer"]


class GgmlQuantizer(RowQuantizer):
    """One ggml type; subclasses differ by the class attributes in `_TABLE` only.

    `stats`, an importance per column, weighs the search where it is given, as llama.cpp's imatrix does; types
    without a search ignore it.
    """

    def layout_for(self, shape: Shape, dtype: str) -> GgmlBlocks:
        """`ggml:` and the type."""
        return GgmlBlocks(self.name.removeprefix("ggml_"))

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Blocks, on as many threads as torch uses."""
        ggml, bad = self.layout_for(tuple(rows.shape), "f32").ggml, c_int64(-1)
        status = native.library().quantry_gguf_encode(
            native.target(), ggml.id, native.DTYPES[rows.dtype], rows.data_ptr(), rows.shape[1],
            None if importance is None else importance.data_ptr(), out["blocks"].data_ptr(), *rows.shape,
            addressof(bad), native.threads(),
        )  # fmt: skip
        if status:
            native.fail(status, f"encoding {list(rows.shape)} to {ggml.name}")
        return Refused.at(bad.value)


class _Row(NamedTuple):
    name: str
    expected_error: float
    fallback: tuple[str, ...]
    sensitive: str | None = None
    width: int | None = None
    takes_importance: bool = True
    needs: str = "none"
    priority: int = 10


# fallback (where a shape does not divide), sensitive (embedding and output head): what mistral.rs takes
# instead, and for types that it lacks llama.cpp (llama-quant.cpp). `mxfp4` by itself names the layout with
# scales apart, which UQFF stores under a tag of its own.
_TABLE = (
    _Row("q4_0", 0.086, ("f32",), "q6_k"),
    _Row("q4_1", 0.0782, ("f32",), "q6_k"),
    _Row("q5_0", 0.0427, ("f32",), "q8_0"),
    _Row("q5_1", 0.0379, ("f32",), "q8_0"),
    _Row("q8_0", 0.00535, ("f32",), None, 8, takes_importance=False),
    _Row("q8_1", 0.00535, ("f32",), "q8_0", takes_importance=False),
    _Row("q2_k", 0.297, ("q4_0", "f32"), "q6_k", 2),
    _Row("q3_k", 0.151, ("q4_0", "f32"), "q6_k", 3),
    _Row("q4_k", 0.0714, ("q4_1", "f32"), "q6_k", 4),
    _Row("q5_k", 0.0361, ("q5_0", "f32"), "q8_0", 5),
    _Row("q6_k", 0.0177, ("q5_1", "f32"), "q8_0", 6),
    _Row("q8_k", 0.00696, ("q8_1", "f32"), "q8_0", takes_importance=False),
    _Row("iq4_nl", 0.0761, ("f32",), "q6_k", 4, priority=5),
    _Row("iq4_xs", 0.0767, ("iq4_nl", "f32"), "q6_k", 4, priority=5),
    _Row("tq1_0", 0.807, ("q4_0", "f32"), "q6_k", takes_importance=False),
    _Row("tq2_0", 0.807, ("q4_0", "f32"), "q6_k", takes_importance=False),
    _Row("ggml_mxfp4", 0.115, ("f32",), "q8_0", takes_importance=False),
    _Row("ggml_nvfp4", 0.0951, ("q4_0", "f32"), "q6_k", takes_importance=False),
    _Row("q1_0", 0.601, ("q4_0", "f32"), "q6_k", takes_importance=False),
    _Row("q2_0", 0.718, ("q4_0", "f32"), "q6_k", takes_importance=False),
)


def _quantizer(row: _Row) -> Quantizer:
    attributes = {**row._asdict(), "__doc__": f"llama.cpp's {row.name}."}
    cls = type(f"{row.name.title().replace('_', '')}Quantizer", (GgmlQuantizer,), attributes)
    made: Quantizer = cls()
    return made


QUANTIZERS = [_quantizer(row) for row in _TABLE]

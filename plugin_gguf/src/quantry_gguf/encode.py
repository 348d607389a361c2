"""Quantizers whose bytes equal llama.cpp's: Q4_0 … Q8_1 and Q4_K, Q5_K, Q6_K, Q8_K (ggml-quants.c)."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, NamedTuple

from quantry import Layout, Quantizer, RowQuantizer, Shape
from quantry_gguf import native
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "GgmlQuantizer"]


class GgmlQuantizer(RowQuantizer):
    """One ggml type; subclasses differ by the class attributes in `_TABLE` only.

    `stats`, an importance per column, weighs the search where it is given, as llama.cpp's imatrix does; types
    without a search ignore it.
    """

    def layout_for(self, shape: Shape, dtype: str) -> GgmlBlocks:
        """`ggml:` and the quantizer's name."""
        return GgmlBlocks(self.name)

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> int:
        """Blocks, on as many threads as torch uses."""
        ggml, bad = BY_NAME[self.name], c_int64(-1)
        status = native.library().quantry_gguf_encode(
            native.target(), ggml.id, native.DTYPES[rows.dtype], rows.data_ptr(), rows.shape[1],
            None if importance is None else importance.data_ptr(), out["blocks"].data_ptr(), *rows.shape,
            addressof(bad), native.threads(),
        )  # fmt: skip
        if status:
            native.fail(status, f"encoding {list(rows.shape)} to {ggml.name}")
        return bad.value


class _Row(NamedTuple):
    name: str
    fallback: tuple[str, ...]
    sensitive: str | None = None
    width: int | None = None
    takes_importance: bool = True
    needs: str = "none"
    expected_error: float | None = None


# what mistral.rs takes instead: fallbacks where a shape does not divide, promotion of embedding and output
# head
_TABLE = (
    _Row("q4_0", ("f32",), "q6_k"),
    _Row("q4_1", ("f32",), "q6_k"),
    _Row("q5_0", ("f32",), "q8_0"),
    _Row("q5_1", ("f32",), "q8_0"),
    _Row("q8_0", ("f32",), None, 8, takes_importance=False),
    _Row("q8_1", ("f32",), "q8_0", takes_importance=False),
    _Row("q4_k", ("q4_1", "f32"), "q6_k", 4),
    _Row("q5_k", ("q5_0", "f32"), "q8_0", 5),
    _Row("q6_k", ("q5_1", "f32"), "q8_0", 6),
    _Row("q8_k", ("q8_1", "f32"), "q8_0", takes_importance=False),
)


def _quantizer(row: _Row) -> Quantizer:
    attributes = {**row._asdict(), "priority": 10, "__doc__": f"llama.cpp's {row.name}."}
    cls = type(f"{row.name.title().replace('_', '')}Quantizer", (GgmlQuantizer,), attributes)
    made: Quantizer = cls()
    return made


QUANTIZERS = [_quantizer(row) for row in _TABLE]

"""Quantizers of the grid types, IQ1_S … IQ3_S: bytes equal to llama.cpp's (ggml-quants.c).

Eight or four weights share an index into a table of patterns; below 3 bits a weight, quality depends on an
importance per column.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from ctypes import addressof, c_int64
from typing import TYPE_CHECKING, NamedTuple

from quantry import Layout, Quantizer, Refused
from quantry_gguf import native
from quantry_gguf.encode import GgmlQuantizer
from quantry_gguf.types import BY_NAME, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "GridQuantizer"]


class GridQuantizer(GgmlQuantizer):
    """One grid type; subclasses differ by the class attributes in `_TABLE` only."""

    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Blocks, on as many threads as torch uses."""
        ggml, bad = BY_NAME[self.name], c_int64(-1)
        tables = _tables(ggml)  # held here: threads that build them at once get tensors of their own
        status = native.library().quantry_gguf_encode_grid(
            native.target(), ggml.id, native.DTYPES[rows.dtype], rows.data_ptr(), rows.shape[1],
            None if importance is None else importance.data_ptr(), tables.data_ptr(),
            out["blocks"].data_ptr(), *rows.shape, addressof(bad), native.threads(),
        )  # fmt: skip
        if status:
            native.fail(status, f"encoding {list(rows.shape)} to {ggml.name}")
        return Refused.at(bad.value)


# Built here once a process, not in C, which keeps no state, nor by the compiler, which would put up to 0.7 MB
# a type into the library for the 0.1 s that building takes.
@functools.cache
def _tables(ggml: GgmlType) -> Tensor:
    """Grid rows near to each pattern that is none (native/cpu/encode_grid.h)."""
    import torch

    fill, need = native.library().quantry_gguf_grid_tables, c_int64()
    status = fill(ggml.id, None, 0, addressof(need))
    tables = torch.empty(need.value, dtype=torch.uint8)
    status = status or fill(ggml.id, tables.data_ptr(), need.value, addressof(need))
    if status:
        native.fail(status, f"neighbour tables of {ggml.name}")
    return tables


class _Row(NamedTuple):
    name: str
    expected_error: float
    sensitive: str = "q5_k"
    width: int | None = None
    needs: str = "none"


# needs, sensitive: llama.cpp's llama-quant.cpp. expected_error: with equal importance where some is needed
_TABLE = (
    _Row("iq1_s", 0.486, needs="importance"),
    _Row("iq1_m", 0.582),
    _Row("iq2_xxs", 0.344, needs="importance"),
    _Row("iq2_xs", 0.3, needs="importance"),
    _Row("iq2_s", 0.265),
    _Row("iq3_xxs", 0.213),
    _Row("iq3_s", 0.166, "q6_k", 3),
)


def _quantizer(row: _Row) -> Quantizer:
    attributes = {
        **row._asdict(),
        "fallback": ("iq4_nl", "f32"),
        "takes_importance": True,
        "priority": 0,  # their kernels are several times slower
        "__doc__": f"llama.cpp's {row.name}.",
    }
    cls = type(f"{row.name.title().replace('_', '')}Quantizer", (GridQuantizer,), attributes)
    made: Quantizer = cls()
    return made


QUANTIZERS = [_quantizer(row) for row in _TABLE]

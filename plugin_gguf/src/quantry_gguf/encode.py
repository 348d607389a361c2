"""Quantizers whose bytes equal llama.cpp's: Q4_0 … Q8_1 and Q4_K, Q5_K, Q6_K, Q8_K (ggml-quants.c)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from quantry import (
    Layout,
    QuantizedTensor,
    Quantizer,
    Shape,
    ShapeError,
    UsageError,
    ValueDomainError,
    dtype_name,
)
from quantry_gguf import native
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "GgmlQuantizer"]

# rows are converted to float32 and checked in pieces of this many elements (16 MB)
_PIECE_ELEMENTS = 1 << 22

_SOURCE_DTYPES = ("f32", "f16", "bf16")


class GgmlQuantizer(Quantizer):
    """One ggml type; subclasses differ by the class attributes in `_TABLE` only.

    `stats`, an importance per column, weighs the search where it is given, as llama.cpp's imatrix does; it is
    never needed. Q8_0 has no search and ignores it.
    """

    row_block = 256

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """None for float matrices, or stacks of them, whose columns are whole blocks."""
        if dtype not in _SOURCE_DTYPES:
            return f"{self.name} is made from {', '.join(_SOURCE_DTYPES)}, not from {dtype}"
        if len(shape) < 2:
            return f"{self.name} is for matrices, got {len(shape)} dimension(s)"
        return self.layout_for(shape, dtype).why_not(shape)

    def layout_for(self, shape: Shape, dtype: str) -> GgmlBlocks:
        """`ggml:` and the quantizer's name."""
        return GgmlBlocks(self.name)

    def quantize(self, weight: Tensor, layout: Layout, stats: Tensor | None = None) -> QuantizedTensor:
        """Pack `weight` [*, N, K], float32, float16 or bfloat16, on any device; the result lies there too.

        stats: [K] or [experts, K] >= 0. Raises PluginError when the native library is missing.
        """
        import torch

        shape = tuple(weight.shape)
        reason = self.why_not(shape, dtype_name(weight.dtype))
        if reason is not None:
            raise ShapeError(reason)
        if layout != GgmlBlocks(self.name):
            raise UsageError(f"{self.name} makes {GgmlBlocks(self.name)}, not {layout}")
        ggml = BY_NAME[self.name]
        columns = shape[-1]
        rows = weight.detach().reshape(math.prod(shape[:-1]), columns)
        blocks = torch.empty(len(rows), ggml.row_bytes(columns), dtype=torch.uint8)
        for start, stop, importance in _pieces(shape, _importance(stats, shape)):
            part = rows[start:stop].to("cpu", torch.float32).contiguous()
            _check_finite(part, start, shape)
            _encode(ggml, part, importance, blocks[start:stop])
        spec = layout.buffers(shape)["blocks"]
        return QuantizedTensor(layout, shape, {"blocks": blocks.view(spec.shape).to(weight.device)})


class _Row(NamedTuple):
    name: str
    fallback: tuple[str, ...]
    sensitive: str | None = None
    width: int | None = None


# what mistral.rs takes instead: fallbacks where a shape does not divide, promotion of embedding and output
# head
_TABLE = (
    _Row("q4_0", ("f32",), "q6_k"),
    _Row("q4_1", ("f32",), "q6_k"),
    _Row("q5_0", ("f32",), "q8_0"),
    _Row("q5_1", ("f32",), "q8_0"),
    _Row("q8_0", ("f32",), None, 8),
    _Row("q8_1", ("f32",), "q8_0"),
    _Row("q4_k", ("q4_1", "f32"), "q6_k", 4),
    _Row("q5_k", ("q5_0", "f32"), "q8_0", 5),
    _Row("q6_k", ("q5_1", "f32"), "q8_0", 6),
    _Row("q8_k", ("q8_1", "f32"), "q8_0"),
)


def _quantizer(row: _Row) -> Quantizer:
    attributes = {**row._asdict(), "priority": 10, "__doc__": f"llama.cpp's {row.name}."}
    cls = type(f"{row.name.title().replace('_', '')}Quantizer", (GgmlQuantizer,), attributes)
    made: Quantizer = cls()
    return made


QUANTIZERS = [_quantizer(row) for row in _TABLE]


def _importance(stats: Tensor | None, shape: Shape) -> Tensor | None:
    """stats as float32 [matrices, K] on the CPU, one row per matrix of the stack; None without stats."""
    if stats is None:
        return None
    matrices, columns = math.prod(shape[:-2]), shape[-1]
    if tuple(stats.shape) not in {(columns,), (matrices, columns)}:
        raise ShapeError(
            f"importance must be [{columns}] or [{matrices}, {columns}], got {list(stats.shape)}"
        )
    values = stats.detach().cpu().float()
    wrong = ~(values.isfinite() & (values >= 0))
    if wrong.any():
        at = [int(i) for i in wrong.nonzero()[0]]
        value = values[tuple(at)].item()
        raise ValueDomainError(f"importance is {value} at column {at[-1]}; it must be finite and >= 0")
    return values.expand(matrices, columns).contiguous()


def _pieces(shape: Shape, importance: Tensor | None) -> Iterator[tuple[int, int, Tensor | None]]:
    """Row ranges to encode one after the other, each within one matrix where importance counts."""
    rows = math.prod(shape[:-1])
    span = rows if importance is None else shape[-2]
    step = max(1, _PIECE_ELEMENTS // max(1, shape[-1]))
    for first in range(0, rows, max(1, span)):
        weights = None if importance is None else importance[first // span]
        for start in range(first, first + span, step):
            yield start, min(start + step, first + span), weights


def _encode(ggml: GgmlType, rows: Tensor, importance: Tensor | None, blocks: Tensor) -> None:
    """Fill `blocks` from float32 `rows`, both contiguous on the CPU, on as many threads as torch uses."""
    status = native.library().quantry_gguf_encode(
        native.target(),
        ggml.id,
        rows.data_ptr(),
        None if importance is None else importance.data_ptr(),
        blocks.data_ptr(),
        *rows.shape,
        native.threads(),
    )
    if status:
        native.fail(status, f"encoding {list(rows.shape)} to {ggml.name}")


def _check_finite(part: Tensor, first_row: int, shape: Shape) -> None:
    finite = part.isfinite()
    if finite.all():
        return
    row, column = (int(i) for i in (~finite).nonzero()[0])
    value = part[row, column].item()
    matrix, row = divmod(first_row + row, shape[-2])
    where = f"row {row}, column {column}"
    if len(shape) > 2:
        where = f"matrix {matrix}, {where}"
    raise ValueDomainError(f"weight is {value} at {where}", hint="ggml blocks hold finite numbers only.")

"""Quantizers of rows and of whole matrices: what they check and cut is the same for every method."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple, NoReturn

from quantry.dtypes import dtype_name, torch_dtype
from quantry.errors import ShapeError, UsageError, ValueDomainError
from quantry.layout import Layout, Shape
from quantry.quantizer import Quantizer
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MatrixQuantizer", "Refused", "RowQuantizer", "importance_rows"]

_PIECE_ELEMENTS = 1 << 22  # of weights on another device, or of odd strides, that come to the CPU at a time
_SOURCE_DTYPES = ("f32", "f16", "bf16")


class Refused(NamedTuple):
    """A weight that a quantizer cannot take: its place row·K + column, and why; "" where it is no number."""

    place: int
    reason: str = ""

    @classmethod
    def at(cls, place: int) -> Refused | None:
        """What native code says by a place: -1 where every weight is a number."""
        return None if place < 0 else cls(place)


class RowQuantizer(Quantizer):
    """A quantizer that packs each row of a matrix alone, in native code.

    A subclass names its layout and fills runs of rows; shapes, element types, devices, strides, stacks of
    experts, importance and NaN are dealt with here. The native side is quantry/encode/rows.h.
    """

    row_block: ClassVar[int | None] = 1
    takes_importance: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, rows: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Pack `rows` [R, K] float32, float16 or bfloat16, contiguous on the CPU, into `out`.

        importance: float32 [K] >= 0. out: the layout's buffers for [R, K], contiguous, uninitialized.
        Returns the first weight that cannot be packed, None when all can.
        """

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """None for float matrices, or stacks of them, that the layout holds."""
        return _why_not(self, shape, dtype)

    def quantize(self, weight: Tensor, layout: Layout, stats: Tensor | None = None) -> QuantizedTensor:
        """Pack `weight` [*, N, K], on any device; the result lies there too.

        stats: importance [K] or [experts, K] >= 0. Raises ShapeError, ValueDomainError naming row and column,
        UsageError for a layout of another quantizer or where a needed importance is missing, PluginError when
        the native library is missing.
        """
        import torch

        shape = _check(self, weight, layout)
        if stats is None and self.needs == "importance":
            raise UsageError(
                f"{self.name} needs importance: with so few levels it matters which columns count",
                hint="Collect it: quantry imatrix MODEL --text FILE -o FILE, then pass --imatrix FILE.",
            )
        *lead, columns = shape
        rows = weight.detach().reshape(math.prod(lead), columns)
        packed = {
            name: torch.empty(spec.shape, dtype=torch_dtype(spec.dtype))
            for name, spec in layout.buffers((len(rows), columns)).items()
        }
        stats = importance_rows(stats, shape) if self.takes_importance else None
        for start, stop, importance in self._pieces(rows, shape, stats):
            part = rows[start:stop].cpu().contiguous()
            refused = self.encode(part, importance, {n: b[start:stop] for n, b in packed.items()}, layout)
            if refused is not None:
                _refuse(part, refused.place, start, shape, refused.reason)
        specs = layout.buffers(shape)
        return QuantizedTensor(
            layout, shape, {name: b.view(specs[name].shape).to(weight.device) for name, b in packed.items()}
        )

    @staticmethod
    def _pieces(
        rows: Tensor, shape: Shape, importance: Tensor | None
    ) -> Iterator[tuple[int, int, Tensor | None]]:
        """Row ranges to encode one after the other, each within one matrix where importance counts."""
        count, columns = rows.shape
        span = count if importance is None else shape[-2]
        free = rows.is_contiguous() and rows.device.type == "cpu"
        step = max(1, count if free else _PIECE_ELEMENTS // max(1, columns))
        for first in range(0, count, max(1, span)):
            weights = None if importance is None else importance[first // span]
            for start in range(first, first + span, step):
                yield start, min(start + step, first + span), weights


class MatrixQuantizer(Quantizer):
    """A quantizer whose rule needs a whole matrix, packed in native code.

    A subclass names its layout and packs one matrix; shapes, element types, devices, strides, stacks of
    experts, importance and NaN are dealt with here. Each matrix of a stack is packed alone.
    """

    row_block: ClassVar[int | None] = None
    takes_importance: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, matrix: Tensor, importance: Tensor | None, out: Mapping[str, Tensor], layout: Layout
    ) -> Refused | None:
        """Pack `matrix` [N, K] float32, float16 or bfloat16, contiguous on the CPU, into `out`.

        importance: float32 [K] >= 0. out: the layout's buffers for [N, K], contiguous, uninitialized.
        Returns the first weight that cannot be packed, None when all can.
        """

    def why_not(self, shape: Shape, dtype: str) -> str | None:
        """None for float matrices, or stacks of them, that the layout holds."""
        return _why_not(self, shape, dtype)

    def quantize(self, weight: Tensor, layout: Layout, stats: Tensor | None = None) -> QuantizedTensor:
        """Pack `weight` [*, N, K], on any device; the result lies there too.

        stats: importance [K] or [experts, K] >= 0. Raises ShapeError, ValueDomainError naming row and column,
        UsageError for a layout of another quantizer, PluginError when the native library is missing.
        """
        import torch

        shape = _check(self, weight, layout)
        stats = importance_rows(stats, shape) if self.takes_importance else None
        rows, columns = shape[-2:]
        specs, one = layout.buffers(shape), layout.buffers((rows, columns))
        packed = {
            name: torch.zeros(spec.shape, dtype=torch_dtype(spec.dtype)) for name, spec in specs.items()
        }
        for i in range(math.prod(shape[:-2]) if weight.numel() else 0):
            matrix = weight.detach() if len(shape) == 2 else weight.detach().flatten(0, -3)[i]
            matrix = matrix.cpu().contiguous()
            place = {name: b.view(-1, *one[name].shape)[i] for name, b in packed.items()}
            refused = self.encode(matrix, None if stats is None else stats[i], place, layout)
            if refused is not None:
                _refuse(matrix, refused.place, i * rows, shape, refused.reason)
        return QuantizedTensor(layout, shape, {name: b.to(weight.device) for name, b in packed.items()})


def importance_rows(stats: Tensor | None, shape: Shape) -> Tensor | None:
    """stats as float32 [matrices, K] on the CPU, one row per matrix of the stack; None without stats.

    Raises ShapeError for another shape, ValueDomainError for a value that is negative or not finite.
    """
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


def _why_not(quantizer: Quantizer, shape: Shape, dtype: str) -> str | None:
    if dtype not in _SOURCE_DTYPES:
        return f"{quantizer.name} is made from {', '.join(_SOURCE_DTYPES)}, not from {dtype}"
    if len(shape) < 2:
        return f"{quantizer.name} is for matrices, got {len(shape)} dimension(s)"
    return quantizer.layout_for(shape, dtype).why_not(shape)


def _check(quantizer: Quantizer, weight: Tensor, layout: Layout) -> Shape:
    """The weight's shape. Raises ShapeError where `why_not` speaks, UsageError for another layout."""
    shape, dtype = tuple(weight.shape), dtype_name(weight.dtype)
    reason = quantizer.why_not(shape, dtype)
    if reason is not None:
        raise ShapeError(reason)
    if layout != (own := quantizer.layout_for(shape, dtype)):
        raise UsageError(f"{quantizer.name} makes {own}, not {layout}")
    return shape


def _refuse(part: Tensor, bad: int, first_row: int, shape: Shape, reason: str = "") -> NoReturn:
    row, column = divmod(bad, part.shape[1])
    value = part[row, column].item()
    matrix, row = divmod(first_row + row, shape[-2])
    where = f"row {row}, column {column}"
    if len(shape) > 2:
        where = f"matrix {matrix}, {where}"
    if reason:
        raise ValueDomainError(f"weight is {value} at {where}: {reason}", hint="Choose another type.")
    raise ValueDomainError(
        f"weight is {value} at {where}",
        hint="The source is damaged, or overflowed in its own type; fetch or export it again.",
    )

"""Write a GGUF file of another checkpoint, in memory that does not grow with the model."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import quantry
from quantry import (
    Dense,
    PartFile,
    QuantizedTensor,
    QuantryError,
    UsageError,
    WeightSource,
    check_fits,
    flight_bytes,
    run_bounded,
)
from quantry_gguf.convert_plan import ConvertPlan, PlannedTensor, plan_conversion
from quantry_gguf.convert_source import open_source
from quantry_gguf.tensor_types import TypeOptions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Converted", "Progress", "convert_gguf"]

Progress = Callable[[int, int, str, int], None]
"""Told (bytes of the file done, bytes in all, tensor, tensors done) after each block, one at a time."""

_BLOCK_BYTES = 8 << 20  # of float32 to be quantized at once


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written, or with `dry_run` would be."""

    output: Path
    plan: ConvertPlan
    seconds: float
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """The document of `quantry convert gguf --json`."""
        return {
            "output": str(self.output),
            "tensors": len(self.plan.tensors),
            "bytes": self.plan.file.size,
            "bits_per_weight": self.plan.bits_per_weight,
            "seconds": self.seconds,
            "types": self.plan.types,
            "fallbacks": [fallback._asdict() for fallback in self.plan.fallbacks],
            "peak_rss_bytes": quantry.peak_rss_bytes(),
            "dry_run": self.dry_run,
        }


def convert_gguf(
    model: str | Path,
    output: str | Path,
    options: TypeOptions,
    *,
    imatrix: str | Path | None = None,
    requantize: bool = False,
    jobs: int | None = None,
    max_memory: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write `model`, a GGUF file or what a runtime can name as one, to a GGUF file of the type of `options`.

    The tensors' types and bytes are those that llama-quantize gives the same model. jobs: workers, which
    the bytes do not depend on. max_memory: bound of the process's memory in bytes. Raises UsageError where
    an option does not fit the model, ValueDomainError naming row and column of a NaN, Inf or overflow,
    FormatError for damaged files; the output is then the old one or none.
    """
    start = time.monotonic()
    target = Path(output)
    if target.suffix != ".gguf":
        raise UsageError("must end in .gguf: runtimes know the format by it", file=target)
    source = open_source(quantry.open(model))
    importance = None if imatrix is None else quantry.read_importance(imatrix)
    plan = plan_conversion(
        source, options, importance, imatrix=None if imatrix is None else str(imatrix), requantize=requantize
    )
    largest = max(_tasks(plan), key=lambda task: task.cost, default=None)
    if largest is not None:
        check_fits(largest.cost, max_memory, largest.tensor.entry.name)
    if not dry_run:
        with PartFile(target, plan.file.size, plan.file.holes) as out:
            out.write(plan.file.head, 0)
            run = _Run(source.weights, plan, out, progress)
            budget = flight_bytes(max_memory)
            run_bounded(_tasks(plan), run.work, lambda task: task.cost, budget=budget, jobs=jobs)
    return Converted(target, plan, time.monotonic() - start, dry_run)


class _Task(NamedTuple):
    """Rows of dimension 0 of a tensor; None: all of it."""

    tensor: PlannedTensor
    rows: slice | None

    @property
    def share(self) -> float:
        """Of the tensor's bytes."""
        size = self.tensor.entry.shape[0] if self.tensor.entry.shape else 1
        return 1.0 if self.rows is None or not size else (self.rows.stop - self.rows.start) / size

    @property
    def cost(self) -> int:
        """Bytes in memory while it runs: of the source, float32 where that is packed, one block made."""
        tensor, elements = self.tensor, self.share * math.prod(self.tensor.entry.shape)
        wide = 0 if isinstance(tensor.entry.layout, Dense) or tensor.quantizer is None else 8 * elements
        return int(self.share * tensor.entry.nbytes + wide) + min(_BLOCK_BYTES, int(4 * elements))

    @property
    def last(self) -> bool:
        """Whether it ends the tensor."""
        return self.rows is None or self.rows.stop == self.tensor.entry.shape[0]


def _tasks(plan: ConvertPlan) -> Iterator[_Task]:
    for tensor in plan.tensors:
        shape, layout = tensor.entry.shape, tensor.entry.layout
        if len(shape) < 2 or not math.prod(shape) or (layout.family not in ("dense", "ggml")):
            yield _Task(tensor, None)  # packings of other methods cannot all be cut between any two rows
            continue
        step = max(1, _BLOCK_BYTES // (4 * math.prod(shape[1:])))
        for start in range(0, shape[0], step):
            yield _Task(tensor, slice(start, min(start + step, shape[0])))


class _Run:
    """What the workers share."""

    def __init__(
        self, weights: WeightSource, plan: ConvertPlan, out: PartFile, progress: Progress | None
    ) -> None:
        self._weights, self._plan, self._out, self._progress = weights, plan, out, progress
        self._lock = threading.Lock()
        self._done = self._tensors = 0

    def work(self, task: _Task) -> None:
        """Read, pack and write some rows."""
        name = task.tensor.entry.name
        try:
            block = self._weights.load(name, task.rows)
            for data, offset in _packed(task, block):
                self._out.write(data, self._plan.file.offsets[name] + offset)
        except QuantryError as e:
            e.tensor = e.tensor or name
            raise
        self._advance(task)

    def _advance(self, task: _Task) -> None:
        tensor = task.tensor
        whole = tensor.type.row_bytes(math.prod(tensor.entry.shape))
        with self._lock:
            self._done += int(task.share * whole)
            self._tensors += task.last
            if self._progress is not None:
                self._progress(self._done, self._plan.file.size, tensor.entry.name, self._tensors)


def _packed(task: _Task, block: QuantizedTensor) -> Iterator[tuple[memoryview, int]]:
    """Bytes of the file, and where in the tensor they belong."""
    tensor, shape = task.tensor, task.tensor.entry.shape
    start = 0 if task.rows is None else task.rows.start
    if tensor.quantizer is None or not shape:
        (stored,) = block.buffers.values()
        yield _bytes(stored), tensor.type.row_bytes(start * math.prod(shape[1:]))
        return
    weight = block.buffers["weight"] if isinstance(block.layout, Dense) else block.dequantize()
    rows = weight.reshape(-1, shape[-1])
    height = shape[-2] if len(shape) > 1 else 1
    first = start * math.prod(shape[1:-1])
    step = max(1, _BLOCK_BYTES // (4 * max(1, shape[-1])))
    for at in range(0, len(rows), height):
        matrix, importance = (first + at) // height, tensor.importance
        if importance is not None and importance.dim() == 2:
            importance = importance[matrix]
        for row in range(at, min(at + height, len(rows)), step):
            part = rows[row : min(row + step, at + height)]
            made = _made(tensor, part, importance, first + row)
            yield _bytes(made), tensor.type.row_bytes((first + row) * shape[-1])


def _made(tensor: PlannedTensor, part: Tensor, importance: Tensor | None, first_row: int) -> Tensor:
    """Rows [R, K] as the file stores them."""
    assert tensor.quantizer is not None
    shape = (part.shape[0], part.shape[1])
    layout = tensor.quantizer.layout_for(shape, quantry.dtype_name(part.dtype))
    packed = quantry.pack_block(tensor.quantizer, part, layout, importance, first_row, tensor.entry.name)
    (stored,) = packed.buffers.values()
    return stored


def _bytes(stored: Tensor) -> memoryview:
    import torch

    flat = stored.contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # numpy < 2.5 does not say it is a buffer

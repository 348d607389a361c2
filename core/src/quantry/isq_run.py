"""Run an ISQ plan in bounded memory: workers take blocks of rows and write them where they belong."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from quantry.bounded import run_bounded
from quantry.dtypes import ITEM_BYTES
from quantry.errors import QuantryError, UsageError, nearest
from quantry.format import WeightSource
from quantry.isq_checks import importance_of, packed, replace_nan
from quantry.isq_journal import Journal
from quantry.isq_plan import Plan, PlannedTensor
from quantry.layout import Shape
from quantry.layouts.dense import Dense
from quantry.process_memory import rss_bytes
from quantry.stream import StreamWriter
from quantry.tensor import QuantizedTensor
from quantry.uqff_output import OutputWriter, is_row_wise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NanPolicy", "Progress", "RunOptions", "check_memory", "run_plan", "write_residual"]

Progress = Callable[[int, int, str, int], None]
"""Told (source bytes done, source bytes in all, tensor, tensors done) after each block, one at a time."""

NanPolicy = Literal["refuse", "zero"]

_BLOCK_BYTES = 8 << 20  # of float32 per task: large enough that calls do not count, small beside a tensor
_FLIGHT_BYTES = 200 << 20  # of blocks being worked on, whatever the number of workers
_KEPT_BYTES = 64 << 20  # of memory that the process holds beside blocks


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a plan is run; the bytes depend on `nan_policy` and `importance` only.

    jobs: workers, None for one per core. max_memory: bound of the process's memory in bytes. nan_policy:
    "zero" writes 0 for NaN and Inf and counts them in `replaced`, "refuse" raises.
    """

    jobs: int | None = None
    max_memory: int | None = None
    nan_policy: NanPolicy = "refuse"
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"{self.jobs} jobs cannot work")
        known = get_args(NanPolicy)
        if self.nan_policy not in known:
            raise UsageError(f"unknown NaN policy {self.nan_policy!r}", hint=nearest(self.nan_policy, known))

    def flight_bytes(self) -> int:
        """Of source, float32 and packed blocks that may be in memory at once."""
        if self.max_memory is None:
            return _FLIGHT_BYTES
        return max(self.max_memory - rss_bytes() - _KEPT_BYTES, 0)


@dataclass(frozen=True, slots=True)
class _Task:
    """Rows of one source tensor on their way to rows of one layer; rows None: the whole tensor at once."""

    number: int
    tensor: PlannedTensor
    part: int
    rows: slice | None
    last: bool

    @property
    def elements(self) -> int:
        """Weights it packs."""
        if self.rows is None:
            return math.prod(self.tensor.layer.shape)
        return self.row_count * self.tensor.layer.shape[-1]

    @property
    def cost(self) -> int:
        """Bytes in memory while it runs: source block, float32 copy, packed block."""
        layer, elements = self.tensor.layer, self.elements
        made: int = layer.layout.nbytes(layer.shape) * elements // max(1, math.prod(layer.shape))
        return _source_bytes(self.tensor, elements) + 4 * elements + made

    @property
    def first_row(self) -> int:
        """Among the rows of all experts of the layer."""
        size, *inner, _ = self.tensor.source_shape
        start: int = 0 if self.rows is None else self.rows.start
        return (self.part * size + start) * math.prod(inner)

    @property
    def row_count(self) -> int:
        """Rows of the layer that a block of rows makes."""
        assert self.rows is not None
        rows: int = self.rows.stop - self.rows.start
        return rows * math.prod(self.tensor.source_shape[1:-1])


def check_memory(plan: Plan, options: RunOptions) -> None:
    """Raise UsageError naming the tensor whose work does not fit `max_memory`."""
    if options.max_memory is None:
        return
    free = options.flight_bytes()
    largest = max(_tasks(plan), key=lambda task: task.cost, default=None)
    if largest is not None and largest.cost > free:
        need = rss_bytes() + _KEPT_BYTES + largest.cost
        raise UsageError(
            f"needs {largest.cost / 1e6:.0f} MB to be packed, of {free / 1e6:.0f} MB that are left",
            tensor=f"{largest.tensor.layer.key}.weight",
            hint=f"--max-memory {math.ceil(need / 1e6)}MB is the least.",
        )


def run_plan(
    plan: Plan,
    source: WeightSource,
    out: OutputWriter,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    stem: str = "",
) -> None:
    """Quantize every planned tensor into `out`. The result does not depend on the number of workers.

    journal: of finished tasks, by the output's `stem`; those of an earlier run are not done again. Raises
    ValueDomainError naming tensor, row and column of a NaN or Inf. The first failure stops the others.
    """
    options = options or RunOptions()
    journal = journal or Journal(None)
    done = journal.done(stem) if out.found else set()
    run = _Run(source, out, options, _Meter(plan, progress), journal)

    def missing() -> Iterator[_Task]:
        for task in _tasks(plan):
            if task.number in done:
                run.skip(task)
            else:
                yield task

    with journal.recording(stem, out.sync):
        budget = options.flight_bytes()
        run_bounded(missing(), run.work, lambda task: task.cost, budget=budget, jobs=options.jobs)
    for tensor in plan.tensors:
        if tensor.bias is not None:
            out.write_bias(tensor.layer.key, source.load(tensor.bias).buffers["weight"])


def write_residual(plan: Plan, source: WeightSource, writer: StreamWriter) -> None:
    """Copy the tensors that are no layers, by rows, as they are."""
    for name, spec in plan.residual.items():
        if not spec.shape or not spec.nbytes:
            writer.write(name, source.load(name).buffers["weight"])
            continue
        row_bytes = spec.nbytes // spec.shape[0]
        for rows in _slices(spec.shape[0], max(1, _BLOCK_BYTES // row_bytes)):
            writer.write(name, source.load(name, rows).buffers["weight"], rows.start * row_bytes)


def _tasks(plan: Plan) -> Iterator[_Task]:
    number = 0
    for tensor in plan.tensors:
        block = _block_rows(tensor)
        if block is None:
            yield _Task(number, tensor, 0, None, True)
            number += 1
            continue
        parts, size = len(tensor.sources), tensor.source_shape[0]
        for part in range(parts):
            for rows in _slices(size, block):
                last = part == parts - 1 and rows.stop == size
                yield _Task(number, tensor, part, rows, last)
                number += 1


def _block_rows(tensor: PlannedTensor) -> int | None:
    """Rows of the source's first dimension per block; None when the layer must be made whole."""
    layer, quantizer = tensor.layer, tensor.quantizer
    grain = 1 if quantizer is None else quantizer.row_block
    if grain is None or not is_row_wise(layer):
        return None
    if len(tensor.source_shape) > 2:
        return 1  # a stack in one tensor: expert by expert
    return max(1, _BLOCK_BYTES // (4 * max(1, layer.shape[-1])) // grain) * grain


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


class _Run:
    """What the workers share."""

    def __init__(
        self, source: WeightSource, out: OutputWriter, options: RunOptions, meter: _Meter, journal: Journal
    ) -> None:
        self._source, self._out, self._options = source, out, options
        self._meter, self._journal = meter, journal
        self._lock = threading.Lock()

    def work(self, task: _Task) -> None:
        """Read, pack and write one block."""
        layer, name = task.tensor.layer, task.tensor.sources[task.part]
        try:
            if task.rows is None:
                self._out.write_layer(layer.key, self._packed(task, self._whole(task), 0))
            else:
                self._facts(task)
                block = self._source.load(name, task.rows)
                self._out.write_rows(layer.key, self._packed(task, block, task.first_row), task.first_row)
        except QuantryError as e:
            e.tensor = e.tensor or name
            raise
        self._journal.add(task.number)
        self._meter.advance(task)

    def skip(self, task: _Task) -> None:
        """Count a block that an earlier run wrote."""
        layer = task.tensor.layer
        if task.rows is None:
            self._out.mark_layer(layer.key)
        else:
            self._facts(task)
            self._out.mark_rows(layer.key, task.first_row, task.row_count)
        self._meter.advance(task)

    def _whole(self, task: _Task) -> QuantizedTensor:
        """The source of a layer, of its own memory: pages of a mapped file would stay until the end."""
        tensor = task.tensor
        rows = slice(0, tensor.source_shape[0]) if isinstance(tensor.source_layout, Dense) else None
        return _stack([self._source.load(name, rows) for name in tensor.sources], tensor.layer.shape)

    def _facts(self, task: _Task) -> None:
        if task.part == 0 and task.rows is not None and task.rows.start == 0:
            self._out.write_facts(task.tensor.layer.key)

    def _packed(self, task: _Task, block: QuantizedTensor, first_row: int) -> QuantizedTensor:
        quantizer, layer = task.tensor.quantizer, task.tensor.layer
        if quantizer is None:
            rewrite = task.tensor.rewrite
            return block if rewrite is None else rewrite.apply(block)
        name = f"{layer.key}.weight"
        weight = block.buffers["weight"] if isinstance(block.layout, Dense) else block.dequantize()
        if self._options.nan_policy == "zero":
            weight, count = replace_nan(weight)
            if count:
                with self._lock:
                    self._options.replaced[name] = self._options.replaced.get(name, 0) + count
        importance = importance_of(self._options.importance, quantizer, name, layer.shape)
        if importance is not None and importance.dim() == 2 and task.rows is not None:
            expert = task.part if len(task.tensor.sources) > 1 else task.rows.start
            importance = importance[expert] if weight.dim() == 2 else importance[expert : expert + 1]
        return packed(quantizer, weight, layer.layout, importance, first_row, name)


def _stack(parts: list[QuantizedTensor], shape: Shape) -> QuantizedTensor:
    if len(parts) == 1:
        return parts[0]
    import torch

    buffers = {n: torch.stack([p.buffers[n] for p in parts]) for n in parts[0].buffers}
    return QuantizedTensor(parts[0].layout, shape, buffers)


class _Meter:
    """Counts source bytes and finished tensors, and tells."""

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = self._tensors = 0
        self._total = sum(_source_bytes(t, math.prod(t.layer.shape)) for t in plan.tensors)

    def advance(self, task: _Task) -> None:
        with self._lock:
            self._done += _source_bytes(task.tensor, task.elements)
            self._tensors += task.last
            if self._progress is not None:
                self._progress(self._done, self._total, task.tensor.layer.key, self._tensors)


def _source_bytes(tensor: PlannedTensor, count: int) -> int:
    layout = tensor.source_layout
    return count * ITEM_BYTES[layout.dtype] if isinstance(layout, Dense) else count

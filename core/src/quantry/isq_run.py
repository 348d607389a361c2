"""Run an ISQ plan in bounded memory: workers take blocks of rows and write them where they belong."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from quantry.bounded import check_fits, flight_bytes, run_bounded
from quantry.dtypes import ITEM_BYTES
from quantry.errors import QuantryError, UsageError, nearest
from quantry.executor import Batch, TaskDone
from quantry.format import WeightSource
from quantry.isq_checks import importance_of, packed, replace_nan
from quantry.isq_journal import Journal
from quantry.isq_plan import Plan, PlannedTensor
from quantry.layout import Shape
from quantry.layouts.dense import Dense
from quantry.stream import StreamWriter
from quantry.tensor import QuantizedTensor
from quantry.uqff_output import OutputWriter, is_row_wise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Elsewhere",
    "NanPolicy",
    "Packing",
    "Progress",
    "RunOptions",
    "check_memory",
    "run_plan",
    "tasks_of",
    "write_residual",
]

Progress = Callable[[int, int, str, int], None]
"""Told (source bytes done, source bytes in all, tensor, tensors done) after each block, one at a time."""

Elsewhere = Callable[[Sequence[Batch], Callable[[Sequence[TaskDone]], None]], None]
"""Has batches done by other processes, which write to the same files, and tells of each."""

NanPolicy = Literal["refuse", "zero"]

_BLOCK_BYTES = 8 << 20  # of float32 per task: large enough that calls do not count, small beside a tensor
_BATCH_BYTES = 128 << 20  # of source per batch: against seconds of work, a call and a flush do not count
_BATCHES = 64  # at least, where there are tasks for it: workers shall end at about the same time
_BATCH_JOBS = 2  # threads for a batch on one core: one reads or writes while the other packs


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


@dataclass(frozen=True, slots=True)
class Task:
    """Rows of one source tensor on their way to rows of one layer; rows None: the whole tensor at once."""

    number: int
    tensor: PlannedTensor
    part: int
    rows: slice | None
    last: bool

    @property
    def starts_layer(self) -> bool:
        """Whether it is the first of several that make a layer."""
        return self.part == 0 and self.rows is not None and self.rows.start == 0

    @property
    def elements(self) -> int:
        """Weights it packs."""
        if self.rows is None:
            return math.prod(self.tensor.layer.shape)
        return self.row_count * self.tensor.layer.shape[-1]

    @property
    def source_bytes(self) -> int:
        """Bytes it reads."""
        return _source_bytes(self.tensor, self.elements)

    @property
    def cost(self) -> int:
        """Bytes in memory while it runs: source block, float32 copy, packed block."""
        layer, elements = self.tensor.layer, self.elements
        made: int = layer.layout.nbytes(layer.shape) * elements // max(1, math.prod(layer.shape))
        return self.source_bytes + 4 * elements + made

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
    largest = max(tasks_of(plan), key=lambda task: task.cost, default=None)
    if largest is not None:
        check_fits(largest.cost, options.max_memory, f"{largest.tensor.layer.key}.weight")


def run_plan(
    plan: Plan,
    source: WeightSource,
    out: OutputWriter,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    stem: str = "",
    elsewhere: Elsewhere | None = None,
) -> None:
    """Quantize every planned tensor into `out`. The result does not depend on the number of workers.

    journal: of finished tasks, by the output's `stem`; those of an earlier run are not done again. elsewhere:
    who does the work instead of threads of this process. Raises ValueDomainError naming tensor, row and
    column of a NaN or Inf. The first failure stops the others.
    """
    options = options or RunOptions()
    journal = journal or Journal(None)
    done = journal.done(stem) if out.found else set()
    packing, ledger = Packing(source, out, options), _Ledger(plan, out, options, progress, journal)

    def missing() -> Iterator[Task]:
        for task in tasks_of(plan):
            if task.starts_layer:
                out.write_facts(task.tensor.layer.key)
            if task.number in done:
                ledger.found(task)
            else:
                yield task

    with journal.recording(stem, out.sync):
        if elsewhere is None:
            packing.run(missing(), ledger.wrote, options.jobs)
        else:
            tasks = {task.number: task for task in missing()}
            out.sync()  # others see the files as they are on the disk
            elsewhere(_batches(list(tasks.values())), lambda done: ledger.told(tasks, done))
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


def tasks_of(plan: Plan) -> Iterator[Task]:
    """The work, in the order of the source; numbers count from 0."""
    number = 0
    for tensor in plan.tensors:
        block = _block_rows(tensor)
        if block is None:
            yield Task(number, tensor, 0, None, True)
            number += 1
            continue
        parts, size = len(tensor.sources), tensor.source_shape[0]
        for part in range(parts):
            for rows in _slices(size, block):
                last = part == parts - 1 and rows.stop == size
                yield Task(number, tensor, part, rows, last)
                number += 1


def _batches(tasks: Sequence[Task]) -> list[Batch]:
    """Neighbours together, so that a worker reads a tensor on and on."""
    size = min(_BATCH_BYTES, sum(task.source_bytes for task in tasks) // _BATCHES)
    groups: list[list[Task]] = []
    held = 0
    for task in tasks:
        if not groups or held + task.source_bytes > size:
            groups.append([])
            held = 0
        groups[-1].append(task)
        held += task.source_bytes
    return [_batch(group) for group in groups]


def _batch(tasks: Sequence[Task]) -> Batch:
    largest = max(task.cost for task in tasks)
    memory = max(largest, min(_BATCH_JOBS * largest, flight_bytes(None)))
    return Batch(tuple(task.number for task in tasks), f"{tasks[0].tensor.layer.key}.weight", memory)


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


class Packing:
    """Reads, packs and writes blocks: in this process, or for another whose output `out` has joined."""

    def __init__(self, source: WeightSource, out: OutputWriter, options: RunOptions) -> None:
        self._source, self._out, self._options = source, out, options

    def run(self, tasks: Iterable[Task], wrote: Callable[[Task, int], None], jobs: int | None) -> None:
        """Do tasks within the bound of memory, on `jobs` threads, and tell of each on its thread.

        wrote: told the task, and how many NaN and Inf became 0.
        """

        def work(task: Task) -> None:
            wrote(task, self._write(task))

        budget = flight_bytes(self._options.max_memory)
        run_bounded(tasks, work, lambda task: task.cost, budget=budget, jobs=jobs)

    def run_batch(self, tasks: Sequence[Task]) -> list[TaskDone]:
        """Do the tasks of a batch on one core; when this returns, their bytes are on the disk."""
        done: list[TaskDone] = []
        self.run(tasks, lambda task, replaced: done.append(TaskDone(task.number, replaced)), _BATCH_JOBS)
        self._out.sync()
        return done

    def _write(self, task: Task) -> int:
        layer, name = task.tensor.layer, task.tensor.sources[task.part]
        try:
            if task.rows is None:
                qt, replaced = self._packed(task, self._whole(task), 0)
                self._out.write_layer(layer.key, qt)
            else:
                qt, replaced = self._packed(task, self._source.load(name, task.rows), task.first_row)
                self._out.write_rows(layer.key, qt, task.first_row)
        except QuantryError as e:
            e.tensor = e.tensor or name
            raise
        return replaced

    def _whole(self, task: Task) -> QuantizedTensor:
        """The source of a layer, of its own memory: pages of a mapped file would stay until the end."""
        tensor = task.tensor
        rows = slice(0, tensor.source_shape[0]) if isinstance(tensor.source_layout, Dense) else None
        return _stack([self._source.load(name, rows) for name in tensor.sources], tensor.layer.shape)

    def _packed(self, task: Task, block: QuantizedTensor, first_row: int) -> tuple[QuantizedTensor, int]:
        quantizer, layer = task.tensor.quantizer, task.tensor.layer
        if quantizer is None:
            rewrite = task.tensor.rewrite
            return (block if rewrite is None else rewrite.apply(block)), 0
        name = f"{layer.key}.weight"
        weight = block.buffers["weight"] if isinstance(block.layout, Dense) else block.dequantize()
        replaced = 0
        if self._options.nan_policy == "zero":
            weight, replaced = replace_nan(weight)
        importance = importance_of(self._options.importance, quantizer, name, layer.shape)
        if importance is not None and importance.dim() == 2 and task.rows is not None:
            expert = task.part if len(task.tensor.sources) > 1 else task.rows.start
            importance = importance[expert] if weight.dim() == 2 else importance[expert : expert + 1]
        return packed(quantizer, weight, layer.layout, importance, first_row, name), replaced


def _stack(parts: list[QuantizedTensor], shape: Shape) -> QuantizedTensor:
    if len(parts) == 1:
        return parts[0]
    import torch

    buffers = {n: torch.stack([p.buffers[n] for p in parts]) for n in parts[0].buffers}
    return QuantizedTensor(parts[0].layout, shape, buffers)


class _Ledger:
    """What is done: covered in the output, kept in the journal, counted and told."""

    def __init__(
        self, plan: Plan, out: OutputWriter, options: RunOptions, progress: Progress | None, journal: Journal
    ) -> None:
        self._out, self._replaced, self._journal, self._progress = out, options.replaced, journal, progress
        self._lock = threading.Lock()
        self._done = self._tensors = 0
        self._total = sum(_source_bytes(t, math.prod(t.layer.shape)) for t in plan.tensors)

    def wrote(self, task: Task, replaced: int) -> None:
        """`out` itself wrote a block."""
        self._journal.add(task.number)
        self._count(task, replaced)

    def told(self, tasks: Mapping[int, Task], done: Iterable[TaskDone]) -> None:
        """Another process wrote blocks, which are on the disk."""
        for each in done:
            self._cover(tasks[each.number])
            self.wrote(tasks[each.number], each.replaced)

    def found(self, task: Task) -> None:
        """An earlier run wrote a block."""
        self._cover(task)
        self._count(task, 0)

    def _cover(self, task: Task) -> None:
        key = task.tensor.layer.key
        if task.rows is None:
            self._out.mark_layer(key)
        else:
            self._out.mark_rows(key, task.first_row, task.row_count)

    def _count(self, task: Task, replaced: int) -> None:
        with self._lock:
            if replaced:
                name = f"{task.tensor.layer.key}.weight"
                self._replaced[name] = self._replaced.get(name, 0) + replaced
            self._done += task.source_bytes
            self._tensors += task.last
            if self._progress is not None:
                self._progress(self._done, self._total, task.tensor.layer.key, self._tensors)


def _source_bytes(tensor: PlannedTensor, count: int) -> int:
    layout = tensor.source_layout
    return count * ITEM_BYTES[layout.dtype] if isinstance(layout, Dense) else count

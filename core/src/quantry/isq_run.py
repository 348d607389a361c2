"""Run an ISQ plan in bounded memory: workers take blocks of rows and write them where they belong."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantry.dtypes import ITEM_BYTES
from quantry.errors import QuantryError, UsageError, ValueDomainError
from quantry.format import WeightSource
from quantry.isq_plan import Plan, PlannedTensor
from quantry.layout import Shape
from quantry.layouts.dense import Dense
from quantry.quantizer import Quantizer
from quantry.stream import StreamWriter
from quantry.tensor import QuantizedTensor
from quantry.uqff_output import OutputWriter, is_row_wise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Progress", "check_finite", "importance_of", "run_plan", "write_residual"]

Progress = Callable[[int, int, str], None]
"""Told (source bytes done, source bytes in all, tensor) after each block, by any worker, one at a time."""

_BLOCK_BYTES = 8 << 20  # of float32 per worker: large enough that calls do not count, small beside a tensor


@dataclass(frozen=True, slots=True)
class _Task:
    """Rows of one source tensor on their way to rows of one layer; rows None: the whole tensor at once."""

    tensor: PlannedTensor
    part: int
    rows: slice | None


def run_plan(
    plan: Plan,
    source: WeightSource,
    out: OutputWriter,
    jobs: int | None = None,
    importance: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> None:
    """Quantize every planned tensor into `out`. The result does not depend on `jobs` (None: one per core).

    Raises ValueDomainError naming tensor, row and column of a NaN or Inf. The first failure stops the others.
    """
    import torch

    jobs = jobs or os.cpu_count() or 1
    if jobs < 1:
        raise UsageError(f"{jobs} jobs cannot work")
    stats = importance or {}
    meter = _Meter(plan, progress)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, "quantry-isq", torch.set_num_threads, (1,))  # rows are the parallelism
    pending: set[Future[None]] = set()
    try:
        for task in _tasks(plan):
            if len(pending) >= 2 * jobs:
                pending = _drain(pending)
            pending.add(pool.submit(_run, task, source, out, stats, meter))
        while pending:
            pending = _drain(pending)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
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


def check_finite(weight: Tensor, first_row: int = 0, name: str | None = None) -> None:
    """Raise ValueDomainError naming the first NaN or Inf; rows count from `first_row`."""
    import torch

    if weight.device.type == "meta" or bool(torch.isfinite(weight).all()):
        return
    flat = weight.reshape(-1, weight.shape[-1])
    row, column = (~torch.isfinite(flat)).nonzero()[0].tolist()
    raise ValueDomainError(
        f"holds {flat[row, column].item()} at row {first_row + row}, column {column}",
        tensor=name,
        hint="The source is damaged, or overflowed in its own type; fetch or export it again.",
    )


def importance_of(
    stats: Mapping[str, Tensor], quantizer: Quantizer, name: str, shape: Shape
) -> Tensor | None:
    """The importance of a weight, [K] or [experts, K], by its name or that without `.weight`; None without.

    Raises UsageError for one of another shape, and for a quantizer that needs more than importance.
    """
    if quantizer.needs in ("hessian", "inputs"):
        raise UsageError(
            f"{quantizer.name} needs {quantizer.needs} from calibration; ISQ has none", tensor=name
        )
    found = stats.get(name, stats.get(name.removesuffix(".weight")))
    fitting = [shape[-1:]] if len(shape) < 3 else [shape[-1:], (shape[0], shape[-1])]
    if found is not None and tuple(found.shape) not in fitting:
        raise UsageError(f"importance has shape {list(found.shape)}, the weight {list(shape)}", tensor=name)
    return found


def _drain(pending: set[Future[None]]) -> set[Future[None]]:
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest


def _tasks(plan: Plan) -> Iterator[_Task]:
    for tensor in plan.tensors:
        block = _block_rows(tensor)
        for part in range(len(tensor.sources)):
            if block is None:
                if part == 0:
                    yield _Task(tensor, 0, None)
                continue
            shape = tensor.layer.shape if len(tensor.sources) == 1 else tensor.layer.shape[1:]
            yield from (_Task(tensor, part, rows) for rows in _slices(shape[0], block))


def _block_rows(tensor: PlannedTensor) -> int | None:
    """Rows of the source's first dimension per block; None when the layer must be made whole."""
    layer, quantizer = tensor.layer, tensor.quantizer
    grain = 1 if quantizer is None else quantizer.row_block
    if grain is None or not is_row_wise(layer):
        return None
    if len(layer.shape) > 2 and len(tensor.sources) == 1:
        return 1  # a stack in one tensor: expert by expert
    return max(1, _BLOCK_BYTES // (4 * max(1, layer.shape[-1])) // grain) * grain


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _run(
    task: _Task, source: WeightSource, out: OutputWriter, stats: Mapping[str, Tensor], meter: _Meter
) -> None:
    layer, name = task.tensor.layer, task.tensor.sources[task.part]
    try:
        if task.rows is None:
            whole = _stack([source.load(n) for n in task.tensor.sources], layer.shape)
            out.write_layer(layer.key, _packed(task, whole, stats, 0))
        else:
            first = task.part * math.prod(layer.shape[1:-1]) if len(task.tensor.sources) > 1 else 0
            first += task.rows.start * (math.prod(layer.shape[1:-1]) if len(task.tensor.sources) == 1 else 1)
            if task.part == 0 and task.rows.start == 0:
                out.write_facts(layer.key)
            block = source.load(name, task.rows)
            out.write_rows(layer.key, _packed(task, block, stats, first), first)
    except QuantryError as e:
        e.tensor = e.tensor or name
        raise
    meter.advance(task)


def _packed(
    task: _Task, block: QuantizedTensor, stats: Mapping[str, Tensor], first_row: int
) -> QuantizedTensor:
    quantizer, layer = task.tensor.quantizer, task.tensor.layer
    if quantizer is None:
        return block
    weight = block.buffers["weight"] if isinstance(block.layout, Dense) else block.dequantize()
    check_finite(weight, first_row, f"{layer.key}.weight")
    importance = importance_of(stats, quantizer, f"{layer.key}.weight", layer.shape)
    if importance is not None and importance.dim() == 2 and task.rows is not None:
        expert = task.part if len(task.tensor.sources) > 1 else task.rows.start
        importance = importance[expert] if weight.dim() == 2 else importance[expert : expert + 1]
    return quantizer.quantize(weight, layer.layout, importance)


def _stack(parts: list[QuantizedTensor], shape: Shape) -> QuantizedTensor:
    if len(parts) == 1:
        return parts[0]
    import torch

    buffers = {n: torch.stack([p.buffers[n] for p in parts]) for n in parts[0].buffers}
    return QuantizedTensor(parts[0].layout, shape, buffers)


class _Meter:
    """Counts source bytes, and tells."""

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._total = sum(_source_bytes(t, math.prod(t.layer.shape)) for t in plan.tensors)

    def advance(self, task: _Task) -> None:
        shape = task.tensor.layer.shape
        count = math.prod(shape)
        if task.rows is not None:
            size = shape[0] if len(task.tensor.sources) == 1 else shape[0] * shape[1]
            count = count // max(1, size) * (task.rows.stop - task.rows.start)
        with self._lock:
            self._done += _source_bytes(task.tensor, count)
            if self._progress is not None:
                self._progress(self._done, self._total, task.tensor.layer.key)


def _source_bytes(tensor: PlannedTensor, count: int) -> int:
    layout = tensor.source_layout
    return count * ITEM_BYTES[layout.dtype] if isinstance(layout, Dense) else count

"""Why each weight runs on the kernel it runs on: every candidate, chosen or with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from quantry.checkpoint import Checkpoint, open_checkpoint
from quantry.errors import NoKernelError, UsageError
from quantry.kernel import BUCKETS, NumericsMode, Op, bucket_index
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.policy import MeasureMode, Policy, use
from quantry.resolve import Decision, resolve
from quantry.tensor import QuantizedTensor

__all__ = ["explain"]

_Weight = tuple[str, Layout, Shape, Sequence[Op]]


def explain(
    weight: QuantizedTensor | Checkpoint | str | Path,
    device: str = "cpu",
    batch: int = 1,
    *,
    tensor: str | None = None,
    dtype: str = "f32",
    numerics: NumericsMode | None = None,
    measure: MeasureMode | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The JSON document of `quantry explain`, for one packed value or for each weight of a checkpoint.

    batch: rows of x that the shown choice is for. dtype: of activations, by name ("f32", "bf16"). A weight
    that nothing can run has `chosen: null` and every refusal; that is an answer here, not an error.
    measure: "on" times the kernels first, within `seconds` (2 by default) and for every row count, because
    they share a storage; "measured" tells how many problems were timed, and how many are left.
    """
    if batch < 0:
        raise UsageError(f"batch must not be negative, got {batch}")
    measured = None
    with use(numerics=numerics, measure=measure) as policy:
        weights = list(_weights(weight, tensor))
        if policy.measure == "on":
            measured = _measure(weights, device, dtype, policy, seconds)
        rows = [_row(*w, device, batch, dtype, policy) for w in weights]
    info = registry().device(device)
    return {
        "device": str(info),
        "device_name": info.name,
        "batch": batch,
        "dtype": dtype,
        "numerics": policy.numerics,
        "measure": policy.measure,
        "measured": measured,
        "tensors": rows,
    }


def _measure(
    weights: Sequence[_Weight], device: str, dtype: str, policy: Policy, seconds: float | None
) -> dict[str, Any]:
    from quantry.measurement import MODEL_SECONDS, WeightUse, measure

    uses = [WeightUse(layout, shape, tuple(ops), dtype, device, policy) for _, layout, shape, ops in weights]
    done = measure(uses, seconds=MODEL_SECONDS if seconds is None else seconds)
    return done._asdict()


def _weights(weight: QuantizedTensor | Checkpoint | str | Path, tensor: str | None) -> Iterable[_Weight]:
    if isinstance(weight, QuantizedTensor):
        ops: Sequence[Op] = ("experts",) if len(weight.shape) == 3 else ("linear",)
        return [(tensor or "weight", weight.layout, weight.shape, ops)]
    ckpt = weight if isinstance(weight, Checkpoint) else open_checkpoint(weight)
    entries = [ckpt.entry(tensor)] if tensor is not None else ckpt.entries()
    return [
        (e.name, e.layout, e.shape, cast("Sequence[Op]", e.ops))
        for e in entries
        if e.ops or tensor is not None
    ]


def _row(
    name: str,
    layout: Layout,
    shape: Shape,
    ops: Sequence[Op],
    device: str,
    batch: int,
    dtype: str,
    policy: Policy,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "layout": str(layout),
        "shape": list(shape),
        "ops": list(ops),
        "device": str(registry().device(device)),
        "numerics": policy.numerics,
        "chosen": None,
        "storage": None,
        "error": None,
        "candidates": [],
    }
    if not ops:
        row["error"] = "a plain parameter: no kernel multiplies by it"
        return row
    try:
        decision = resolve(layout, shape, ops, dtype, device, policy, tensor=name, partial=True)
    except NoKernelError as e:
        row["error"] = str(e)
        row["candidates"] = [
            {
                "kernel": k,
                "ok": False,
                "chosen": False,
                "reason": r,
                "priority": _priority(k),
                "time_us": None,
            }
            for k, r in e.candidates
        ]
        return row
    row["storage"] = str(decision.storage)
    row["chosen"] = _chosen(decision, ops, batch)
    if row["chosen"] is None:
        row["error"] = f"no kernel serves {batch} rows"
    row["candidates"] = [dataclasses.asdict(c) for c in decision.candidates if c.rows == _bucket(c.op, batch)]
    return row


def _chosen(decision: Decision, ops: Sequence[Op], batch: int) -> str | None:
    """The kernel of the op that does the arithmetic: the last of embedding, linear."""
    op = ops[-1]
    kernel = decision.kernels.get((op, 0 if op == "embedding" else bucket_index(batch)))
    return None if kernel is None else kernel.name


def _bucket(op: str, batch: int) -> int:
    return BUCKETS[0 if op == "embedding" else bucket_index(batch)]


def _priority(kernel: str) -> int:
    return next((k.priority for k in registry().kernels if k.name == kernel), 0)

"""The child process of `quantry doctor`: tells each step as a line of JSON before it takes it."""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from quantry.plugins import GROUP, PluginRecord, _entry_points, registry

if TYPE_CHECKING:
    from quantry.kernel import Kernel

__all__ = ["main"]

_SLOW_MS = 250


def main(name: str, dist: str) -> None:
    """Steps, problems and notes of one plugin on stdout; no `end` line means it took the process down."""
    point = next(
        (p for p, r in _entry_points() if (r.name, r.dist) == (name, dist) and p.group == GROUP), None
    )
    if point is not None:
        _import(point.module)
    _tell(step="calling hooks")
    record = next(p for p in registry().plugins if (p.name, p.dist) == (name, dist))
    if record.error is not None:
        _tell(problem=f"{record.stage}: {record.error}")
    if "torch" in sys.modules:
        _tell(problem="importing it, or its hooks, imports torch: import torch inside functions")
    _try_kernels(record)
    _tell(end=True)


def _import(module: str) -> None:
    _tell(step=f"import {module}")
    start = time.perf_counter()
    try:
        importlib.import_module(module)
    except BaseException:  # the registry reports it with its stage
        return
    ms = (time.perf_counter() - start) * 1e3
    if ms > _SLOW_MS:
        _tell(problem=f"import {module} takes {ms:.0f} ms; more than {_SLOW_MS} slows every command")


def _try_kernels(record: PluginRecord) -> None:
    """One call of each kernel that accepts something here; it is a problem when none does."""
    reasons: list[str] = []
    kernels: tuple[Kernel, ...] = record.provides.get("kernels", ())
    for kernel in kernels:
        _tell(step=f"kernel {kernel.name}")
        try:
            reason = _call(kernel)
        except Exception as e:
            _tell(problem=f"kernel {kernel.name}: {type(e).__name__}: {e}")
            continue
        if reason is not None:
            reasons.append(reason)
            _tell(note=f"kernel {kernel.name} was not run: {reason}")
    if reasons and len(reasons) == len(kernels) and not all(reason.startswith("no ") for reason in reasons):
        _tell(problem=f"none of its kernels runs on this machine: {reasons[0]}")


def _call(kernel: Kernel) -> str | None:
    """Run one small problem against the definition; the reason when there is none that the kernel accepts."""
    from quantry.testing.kernels import KernelSuite, why_nothing_is_accepted

    suite: Any = type("Once", (KernelSuite,), {"kernel": kernel, "max_cases": 1})()
    cases = suite.cases()
    if not cases:
        return why_nothing_is_accepted(type(suite))
    suite.test_equals_the_definition(cases[0])
    return None


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

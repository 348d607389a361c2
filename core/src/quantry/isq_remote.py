"""The work of one output as other processes do it, on any machine that sees the same files.

The driver plans, makes the files and counts what is done. A worker opens the model anew, makes the plan anew,
proves that it is the driver's, and then does tasks by their numbers: it reads, packs and writes by position.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantry.checkpoint import Checkpoint, open_checkpoint
from quantry.errors import PluginError, UsageError
from quantry.executor import TaskDone
from quantry.isq_journal import plan_digest
from quantry.isq_plan import Plan, Selection, make_plan
from quantry.isq_run import Packing, RunOptions, check_memory, tasks_of
from quantry.isq_source import weights_of
from quantry.isq_types import resolve_quantizer
from quantry.plugins import registry
from quantry.quantizer import Quantizer
from quantry.uqff_output import OutputWriter

__all__ = ["OpenWork", "RemoteWork"]

# of plugins that have a say in the bytes; runtimes where they name the model's weights
_KINDS = ("formats", "layouts", "conversions", "quantizers", "codecs")


@dataclass(frozen=True, slots=True)
class RemoteWork:
    """What a worker needs to know of one output; picklable, and open nowhere.

    model, payload: absolute paths of the checkpoint and of the folder of the shards in the making. quantizer,
    selection, rules: as `make_plan` takes them. versions: of the dists that have a say, by name. digest: of
    the plan.
    """

    model: Path
    payload: Path
    stem: str
    quantizer: str | None
    selection: Selection
    rules: Mapping[str, Any]
    options: RunOptions
    versions: Mapping[str, str]
    digest: str

    @classmethod
    def of(
        cls, model: Checkpoint, payload: Path, stem: str, plan: Plan, quantizer: Quantizer | None,
        selection: Selection, rules: Mapping[str, Any], options: RunOptions,
    ) -> RemoteWork:  # fmt: skip
        """The work of a plan and what it was made of."""
        kinds = (*_KINDS, "runtimes") if model.format.own_names else _KINDS
        having = [p for p in registry().plugins if any(p.provides.get(kind) for kind in kinds)]
        versions = {p.dist: p.version for p in having}
        path, name = model.source.path.absolute(), None if quantizer is None else quantizer.name
        return cls(path, payload, stem, name, selection, rules, options, versions, plan_digest(plan))

    def open(self) -> OpenWork:
        """The work, ready to be done by this process.

        Raises UsageError where this machine does not see the files, or others than the driver does,
        PluginError where other plugins are installed; both name the machine.
        """
        here = platform.node()
        _check_versions(self.versions, here)
        for path, what in ((self.model, "the model"), (self.payload, "the output's folder")):
            if not path.exists():
                raise UsageError(
                    f"{here} does not see it", file=path,
                    hint=f"Put {what} on storage that all machines have under one path.",
                )  # fmt: skip
        source = weights_of(open_checkpoint(self.model))
        quantizer = None if self.quantizer is None else resolve_quantizer(self.quantizer)
        plan = make_plan(source, quantizer, self.selection, **self.rules)
        if plan_digest(plan) != self.digest:
            raise UsageError(
                f"{here} makes another plan of it", file=self.model,
                hint="The files differ between the machines: put the model on shared storage.",
            )  # fmt: skip
        check_memory(plan, self.options)
        layers, limit = plan.layers, plan.shard_bytes
        out = OutputWriter(self.payload, self.stem, plan.quant, layers, limit, join=True)
        return OpenWork(plan, Packing(source, out, self.options), out)


class OpenWork:
    """Tasks of one output, done by this process."""

    def __init__(self, plan: Plan, packing: Packing, out: OutputWriter) -> None:
        self._tasks = {task.number: task for task in tasks_of(plan)}
        self._packing, self._out = packing, out

    def do(self, tasks: Sequence[int]) -> list[TaskDone]:
        """Do a batch; when this returns its bytes are on the disk, whatever becomes of this machine.

        Raises QuantryError naming the tensor: weights that the type cannot hold, a full disk.
        """
        return self._packing.run_batch([self._tasks[number] for number in tasks])

    def close(self) -> None:
        """Let the files go."""
        self._out.abort()


def _check_versions(expected: Mapping[str, str], here: str) -> None:
    found = {p.dist: p.version if p.ok else f"a broken {p.version}" for p in registry().plugins}
    wrong = {dist: v for dist, v in expected.items() if found.get(dist) != v}
    if wrong:
        told = [f"{dist} {found.get(dist, 'missing')} instead of {v}" for dist, v in wrong.items()]
        raise PluginError(
            f"{here} has {', '.join(told)}",
            hint="Install the same versions on all machines, or leave plugins out with QUANTRY_PLUGINS.",
        )

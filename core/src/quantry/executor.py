"""Executors: who does the work of quantizing when it is not this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from quantry.isq_remote import RemoteWork

__all__ = ["Batch", "Executor", "TaskDone", "Workers"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks for one worker with one core; in the source they are neighbours.

    tensor: where they begin, for messages. memory_bytes: of weights that a worker holds for them at once,
    beside the process itself.
    """

    tasks: tuple[int, ...]
    tensor: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task whose bytes lie in the output. replaced: NaN and Inf written as 0."""

    number: int
    replaced: int = 0


class Workers(Protocol):
    """Processes, on any machines that share the storage of source and output."""

    def run(
        self, work: RemoteWork, batches: Sequence[Batch], done: Callable[[Sequence[TaskDone]], None]
    ) -> None:
        """Have every batch done, in any order, and tell of each on this thread.

        work: picklable; `work.open()` on the other side gives what does a batch by its tasks. A batch whose
        worker died is done again; its bytes are the same. Raises what the first failing batch raised; after
        that, no more of them are begun.
        """


class Executor(ABC):
    """Runs batches of one plan elsewhere: each reads from and writes to shared storage by position."""

    name: ClassVar[str]

    @abstractmethod
    def connect(self, address: str | None = None, jobs: int | None = None) -> AbstractContextManager[Workers]:
        """Workers for the length of a run.

        address: of the cluster, None for the executor's own choice. jobs: batches in work at a time, None for
        as many as there are cores. Raises UsageError for an address that does not answer, PluginError where
        the executor cannot run here.
        """

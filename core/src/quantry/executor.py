"""Executors: who does the work of quantizing when it is not this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from quantry.isq_remote import RemoteWork

__all__ = ["Executor", "TaskDone"]


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task whose bytes lie in the output. replaced: NaN and Inf written as 0."""

    number: int
    replaced: int = 0


class Executor(ABC):
    """Runs tasks of one plan elsewhere: each reads from and writes to shared storage by position."""

    name: ClassVar[str]

    @abstractmethod
    def run(
        self, work: RemoteWork, tasks: Sequence[int], done: Callable[[TaskDone], None], address: str | None
    ) -> None:
        """Have every task done, in any order, and tell of each.

        work: picklable; `work.open()` on the other side gives what does a task by its number. A task whose
        worker died is done again; its bytes are the same. address: of the cluster, None for the executor's
        own choice. Raises what the first failing task raised, UsageError for an address that does not
        answer.
        """

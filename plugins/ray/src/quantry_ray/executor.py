"""Batches as Ray tasks: a bounded number at a time, those of workers that died done again."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from quantry import Executor, PluginError, QuantryError, UsageError
from quantry_ray.cluster import connected, import_ray
from quantry_ray.worker import do_batch

if TYPE_CHECKING:
    from quantry import Batch, RemoteWork, TaskDone

__all__ = ["RayExecutor", "RayWorkers"]

_TRIES = 3  # of a batch whose worker dies: more often it is the batch that kills it
_WORKER_BYTES = 512 << 20  # of a worker beside its weights: Python, torch, Ray and the plan
_CANCEL_S = 10.0

_log = logging.getLogger(__name__)


class RayExecutor(Executor):
    """Work on a Ray cluster, one core a task."""

    name = "ray"

    @contextlib.contextmanager
    def connect(self, address: str | None = None, jobs: int | None = None) -> Iterator[RayWorkers]:
        """A cluster that runs, or one on this machine for the length of the run.

        address: HOST:PORT; None or "auto": what RAY_ADDRESS names, else one is started.
        """
        with connected(address, jobs):
            if _cores() < 1:
                raise UsageError(
                    "the Ray cluster offers no cores",
                    hint="Start workers first: ray start --address=HOST:PORT",
                )
            yield RayWorkers(jobs)


class _Flight(NamedTuple):
    batch: Batch
    tries: int


class RayWorkers:
    """The worker processes of the cluster that this process is connected to."""

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs

    def run(
        self, work: RemoteWork, batches: Sequence[Batch], done: Callable[[Sequence[TaskDone]], None]
    ) -> None:
        """Have every batch done, in any order, and tell of each on this thread.

        A batch is tried again when its worker or machine died, three times in all. Raises what the first
        failing batch raised; the others are cancelled.
        """
        _check_memory(batches)
        ray = import_ray()
        exceptions = ray.exceptions
        task = ray.remote(num_cpus=1, max_retries=0)(do_batch)
        # in a list: else Ray would hand each task the whole work instead of the reference
        token, shared = secrets.token_hex(8), [ray.put(work)]
        waiting = deque(_Flight(batch, 1) for batch in batches)
        flying: dict[Any, _Flight] = {}
        try:
            while waiting or flying:
                while waiting and len(flying) < self._limit():
                    flight = waiting.popleft()
                    request = task.options(memory=_memory(flight.batch))
                    flying[request.remote(token, shared, flight.batch.tasks)] = flight
                ready, _ = ray.wait(list(flying), num_returns=1)
                flight = flying.pop(ready[0])
                try:
                    told = ray.get(ready[0])
                except exceptions.RayTaskError as e:
                    raise _raised_there(e) from e
                except (
                    exceptions.WorkerCrashedError,
                    exceptions.NodeDiedError,
                    exceptions.OutOfMemoryError,
                ) as e:
                    waiting.appendleft(_again(flight, e))
                except exceptions.RayError as e:
                    raise QuantryError(f"Ray failed: {_sentence(e)}", tensor=flight.batch.tensor) from e
                else:
                    done(told)
        finally:
            _cancel(list(flying))

    def _limit(self) -> int:
        """Batches in the hands of Ray: the next of each core is there before the last one ends."""
        return self._jobs or 2 * max(1, _cores())


def _cores() -> int:
    return int(import_ray().cluster_resources().get("CPU", 0))


def _memory(batch: Batch) -> int:
    """Bytes to ask Ray for; a machine takes as many tasks as it has memory for."""
    return batch.memory_bytes + _WORKER_BYTES


def _check_memory(batches: Sequence[Batch]) -> None:
    """Ray would wait for a larger machine for ever."""
    largest = max(batches, key=_memory, default=None)
    if largest is None:
        return
    machines = [node["Resources"] for node in import_ray().nodes() if node["Alive"]]
    most = max((given.get("memory", 0) for given in machines), default=0)
    need = _memory(largest)
    if need > most:
        raise UsageError(
            f"needs {need / 1e6:.0f} MB on one machine, of {most / 1e6:.0f} MB that the largest one gives",
            tensor=largest.tensor, hint="Add a larger machine, or choose a type that is packed by rows.",
        )  # fmt: skip


def _again(flight: _Flight, error: Exception) -> _Flight:
    batch, tries = flight
    if tries == _TRIES:
        raise QuantryError(
            f"{_TRIES} workers died at this tensor or the next ones: {_sentence(error)}", tensor=batch.tensor,
            hint="Memory is the usual cause: fewer workers by --jobs, or --max-memory for each.",
        ) from error  # fmt: skip
    _log.warning("a worker died at %s; its %d tasks are done again", batch.tensor, len(batch.tasks))
    return _Flight(batch, tries + 1)


def _raised_there(error: Any) -> Exception:
    """The worker's own exception, or what its absence means."""
    cause: Exception = error.cause
    if isinstance(cause, QuantryError):
        return cause
    if isinstance(cause, ImportError) or "failed to import" in str(cause):
        at = re.search(r"ip=([^,)]+)", str(error))
        what = _sentence(cause) if isinstance(cause, ImportError) else "quantry_ray cannot be imported"
        return PluginError(
            f"a worker{'' if at is None else f' on {at[1]}'} lacks what it needs: {what}",
            hint='pip install "quantry[ray]" and the plugins of the type on every machine.',
        )
    return cause


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _cancel(tasks: list[Any]) -> None:
    """End what still runs: its output is going away."""
    ray = import_ray()
    if not tasks:
        return
    with contextlib.suppress(ray.exceptions.RayError):
        for task in tasks:
            ray.cancel(task, force=True)  # an interrupt could leave the process with half an imported torch
        ray.wait(tasks, num_returns=len(tasks), timeout=_CANCEL_S)

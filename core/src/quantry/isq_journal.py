"""What an interrupted run has finished: the next run of the same plan goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantry.checkpoint import Checkpoint
from quantry.isq_plan import Plan
from quantry.plugins import registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Journal", "fingerprint", "plan_digest"]

_SECONDS = 2.0  # between two flushes: what a power cut costs


class Journal:
    """Numbers of finished tasks by output, as JSON lines, written only after their bytes are on the disk.

    path None: nothing is kept, for sources that a later run could not recognize.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fresh: list[int] = []

    def done(self, stem: str) -> set[int]:
        """Tasks of an output that an earlier run finished; a torn last line counts for nothing."""
        if self._path is None or not self._path.exists():
            return set()
        found: set[int] = set()
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                name, tasks = json.loads(line)
            except ValueError:
                break
            found |= set(tasks) if name == stem else set()
        return found

    def add(self, task: int) -> None:
        """A task has written its bytes."""
        with self._lock:
            self._fresh.append(task)

    @contextlib.contextmanager
    def recording(self, stem: str, sync: Callable[[], None]) -> Iterator[None]:
        """Keep what `add` is told within the block. sync: flushes the output's files to the disk."""
        if self._path is None:
            yield
            return
        stop = threading.Event()

        def flush() -> None:
            while not stop.wait(_SECONDS):
                self._flush(stem, sync)

        self._fresh = []
        writer = threading.Thread(target=flush, name="quantry-isq-journal", daemon=True)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()

    def _flush(self, stem: str, sync: Callable[[], None]) -> None:
        assert self._path is not None
        with self._lock:
            fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        try:
            sync()
            with self._path.open("a", encoding="utf-8") as f:
                f.write(json.dumps([stem, fresh]) + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError:
            return  # a full disk: the run itself meets it and says so


def fingerprint(
    source: object, plans: Mapping[str, Plan], importance: Mapping[str, Tensor] | None, extra: Sequence[str]
) -> str | None:
    """Equal for runs whose outputs are equal byte by byte; None where the source is not made of files."""
    if not isinstance(source, Checkpoint):
        return None
    digest = hashlib.sha256()

    def put(*facts: object) -> None:
        digest.update(json.dumps(facts, default=str).encode() + b"\n")

    put(*sorted((p.dist, p.version) for p in registry().plugins), *extra)
    for name in source.source.files:
        stat = (source.source.root / name).stat()
        put(name, stat.st_size, stat.st_mtime_ns)
    for stem, plan in plans.items():
        put(stem, plan_digest(plan))
    for name, values in sorted((importance or {}).items()):
        put(name, hashlib.sha256(values.detach().cpu().float().numpy().tobytes()).hexdigest())
    return digest.hexdigest()


def plan_digest(plan: Plan) -> str:
    """Equal for plans whose outputs, of equal sources, are equal byte by byte."""
    digest = hashlib.sha256(json.dumps([plan.quant, plan.shard_bytes]).encode())
    for tensor in plan.tensors:
        layer = tensor.layer
        quantizer = None if tensor.quantizer is None else tensor.quantizer.name
        source = tensor.source_layout, tensor.source_shape, tensor.sources
        facts = layer.key, layer.codec.tag, layer.layout, layer.shape, layer.bias, quantizer, source
        digest.update(json.dumps(facts, default=str).encode() + b"\n")
    return digest.hexdigest()

"""What kernels took on this machine: in memory, and in one JSON file per device in the user's cache folder.

```
{"schema": 1, "device": {what the times are good for}, "times_us": {"gguf.panel_int8@1|linear|…": 71.3}}
```
A file that is damaged or of another schema is ignored with one warning and rewritten at the next measurement;
where the folder cannot be written, times last as long as the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantry.devices import DeviceInfo
from quantry.errors import UsageError
from quantry.kernel import Kernel, Problem
from quantry.plugins import registry

__all__ = ["Timings", "cache_folder", "forget_times", "timings_of"]

_SCHEMA = 1
# what reading, JSON and a document of another form raise
_UNREADABLE = (
    OSError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, RecursionError,
)  # fmt: skip
_MAX_BYTES = 32 << 20  # some 300 000 times; no real file is as large


class Timings:
    """Times of one device. Threads may share it; other processes may write the same file."""

    def __init__(self, device: dict[str, Any], path: Path | None = None) -> None:
        self._device, self._path = device, path
        self._lock = threading.Lock()
        self._warned = False
        self._times: dict[str, float] = {} if path is None else self._read(path)
        self._fresh: set[str] = set()  # measured here since the last `save`
        self._failures: dict[str, str] = {}

    def time_us(self, kernel: Kernel, problem: Problem) -> float | None:
        """µs of one call, None when it was never measured."""
        return self._times.get(_key(kernel, problem)) if self._times else None

    def failure(self, kernel: Kernel, problem: Problem) -> str | None:
        """The sentence of a kernel that failed while it was timed in this process."""
        return self._failures.get(_key(kernel, problem)) if self._failures else None

    def record(self, kernel: Kernel, problem: Problem, time_us: float) -> None:
        """Keep a time; `save` writes it."""
        key = _key(kernel, problem)
        with self._lock:
            self._times[key] = time_us
            self._fresh.add(key)
            self._failures.pop(key, None)

    def disqualify(self, kernel: Kernel, problem: Problem, error: Exception) -> None:
        """Keep the kernel out of the choice for this problem until the process ends."""
        sentence = str(error).splitlines()[0] if str(error) else "no message"
        with self._lock:
            self._failures[_key(kernel, problem)] = (
                f"failed in measurement: {type(error).__name__}: {sentence}"
            )

    def save(self) -> None:
        """Add what was measured here to what the file holds by now; it is replaced whole or not at all."""
        if self._path is None or not self._fresh:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, _locked(self._path):
                merged = {**self._read(self._path), **{key: self._times[key] for key in self._fresh}}
                document = {"schema": _SCHEMA, "device": self._device, "times_us": merged}
                _replace(self._path, json.dumps(document, indent=0, sort_keys=True))
                self._times.update(merged)
                self._fresh.clear()
        except OSError as e:
            warnings.warn(f"times are kept in memory only: {e}", stacklevel=2)
            self._path = None

    def _read(self, path: Path) -> dict[str, float]:
        """The times in the file; none where there is no file or it says something else."""
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
            document = json.loads(path.read_bytes())
            if document["schema"] != _SCHEMA:
                raise ValueError(f"schema {document['schema']!r}, this version writes {_SCHEMA}")
            return {str(k): float(t) for k, t in document["times_us"].items() if _is_time(t)}
        except FileNotFoundError:
            return {}
        except (
            OSError,
            ArithmeticError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as e:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{path}: its times cannot be read ({type(e).__name__}: {e}); the file is ignored, and"
                    " rewritten when something is measured",
                    stacklevel=2,
                )
            return {}


def timings_of(info: DeviceInfo) -> Timings:
    """The times that are good for a device as it is now: its name and features, torch, threads, targets."""
    key = _key_of(info)
    found = _known.get(key)
    if found is None:
        conditions = _conditions(info)
        with _known_lock:
            found = _known.setdefault(key, Timings(conditions, _file_of(conditions)))
    return found


def forget_times(device: str = "cpu") -> None:
    """Drop the times of a device as it is now, in memory and on disk."""
    info = registry().device(device)
    path = _file_of(_conditions(info))
    with _known_lock:
        _known.pop(_key_of(info), None)
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise UsageError(f"the times in {path} cannot be removed: {e.strerror}") from e


def cache_folder() -> Path:
    """`times` below QUANTRY_CACHE_DIR, else below the user's cache folder of this system."""
    base = os.environ.get("QUANTRY_CACHE_DIR")
    if not base:
        import platformdirs

        base = platformdirs.user_cache_dir("quantry")
    return Path(base) / "times"


_known: dict[tuple[Any, ...], Timings] = {}
_known_lock = threading.Lock()


def _key_of(info: DeviceInfo) -> tuple[Any, ...]:
    """What of `_conditions` and of the folder may change while the process runs."""
    import torch

    env = os.environ
    return info, torch.get_num_threads(), env.get("QUANTRY_CPU_TARGET"), env.get("QUANTRY_CACHE_DIR")


def _file_of(device: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(device, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest[:24]}.json"


def _conditions(info: DeviceInfo) -> dict[str, Any]:
    """What a time depends on beside kernel and problem."""
    import torch

    conditions: dict[str, Any] = {
        "type": info.type,
        "name": info.name,
        "arch": info.arch,
        "capability": list(info.capability),
        "features": " ".join(sorted(info.features)),
        "torch": torch.__version__,
    }
    if info.type == "cpu":
        conditions["threads"] = torch.get_num_threads()
        conditions["vectors"] = torch.backends.cpu.get_cpu_capability()
        conditions["target"] = os.environ.get("QUANTRY_CPU_TARGET", "")
    elif info.type == "cuda":
        driver = getattr(torch._C, "_cuda_getDriverVersion", None)
        conditions["driver"] = driver() if driver is not None else None
    return conditions


def _key(kernel: Kernel, problem: Problem) -> str:
    size = "x".join(str(n) for n in problem.shape)
    return (
        f"{kernel.name}@{kernel.version}|{problem.op}|{problem.layout}|{size}|{problem.rows}|{problem.dtype}"
    )


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among processes, so that no time is lost between reading and replacing; where the system has no
    such lock a writer may undo another's additions, never damage the file."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

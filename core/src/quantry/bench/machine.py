"""What a result says about where it was taken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantry.devices import DeviceInfo
from quantry.plugins import registry

__all__ = ["describe", "memory_bytes"]

_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")


def describe(device: DeviceInfo, threads: int, dists: Iterable[str]) -> dict[str, Any]:
    """Processor, threads, OpenMP runtime and versions: what a figure needs to be compared with another.

    dists: of which to say the version, beside torch and the plugins.
    """
    return {
        "cpu": device.name or platform.processor(),
        "arch": device.arch,
        "features": [flag for flag in _FLAGS if flag in device.features],
        "cores": os.cpu_count(),
        "threads": threads,
        "target": os.environ.get("QUANTRY_CPU_TARGET", ""),
        "openmp": _openmp(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": dict(_versions(("torch", *dists, *(p.dist for p in registry().plugins)))),
    }


def memory_bytes() -> int:
    """What may be used without swapping, or a cautious guess."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # not Linux
    return 8 << 30


def _versions(dists: Iterable[str]) -> Iterable[tuple[str, str]]:
    for dist in dists:
        try:
            yield dist, importlib.metadata.version(dist)
        except importlib.metadata.PackageNotFoundError:
            continue  # a plugin object put in by a test


def _openmp() -> str:
    """The file name of the OpenMP runtimes in this process; more than one is trouble."""
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.exists():
        return ""
    names = {
        Path(line.split()[-1]).name
        for line in maps.read_text().splitlines()
        if "omp" in line and ".so" in line
    }
    return ", ".join(sorted(n for n in names if n.startswith(("libgomp", "libomp", "libiomp"))))

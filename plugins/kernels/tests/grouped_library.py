"""The test library: the families of the grouped kernels, compiled on first use, as a plugin would give them.

One width of codes for each number of bit planes, one 8-bit float; `QUANTRY_TEST_ALL=1` compiles every one
(`make test-kernels`). `QUANTRY_SANITIZE=1` compiles with AddressSanitizer and UBSan. Each has its own folder.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from quantry import (
    Conversion,
    GroupedAffine,
    Kernel,
    Layout,
    NativeLibrary,
    hookimpl,
    panel_conversions,
    panel_kernels,
)
from quantry.panels.conversions import UNPACKING

TESTS = Path(__file__).parent
SANITIZED = os.environ.get("QUANTRY_SANITIZE") == "1"
ALL = os.environ.get("QUANTRY_TEST_ALL") == "1"
BUILD = TESTS.parent / "build" / f"tests{'-all' * ALL}{'-sanitized' * SANITIZED}"
BITS = tuple(GroupedAffine.BITS) if ALL else (3, 4, 7)
FLOATS = ("e4m3", "e5m2") if ALL else ("e4m3",)
SITE = BUILD / "site"


def build() -> None:
    """Compile what changed; test processes take turns."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            sanitize = "ON" if SANITIZED else "OFF"
            _run(
                "cmake", "-S", TESTS / "native", "-B", BUILD, "-G", "Ninja",
                "-DCMAKE_BUILD_TYPE=Release", "-DQUANTRY_WERROR=ON", f"-DQUANTRY_SANITIZE={sanitize}",
                f"-DQUANTRY_TEST_ALL={'ON' if ALL else 'OFF'}",
            )  # fmt: skip
        _run("cmake", "--build", BUILD)
        _run("cmake", "--install", BUILD, "--prefix", SITE)
        (SITE / "quantry_test" / "__init__.py").touch()


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


build()
sys.path.insert(0, str(SITE))

LIBRARY = NativeLibrary("quantry_test", "quantry_test_cpu", "quantry_test", "quantry-test")
KERNELS = panel_kernels(LIBRARY, "test")
CONVERSIONS = panel_conversions(LIBRARY)
__all__ = [
    "BITS", "BUILD", "BY_NAME", "CONVERSIONS", "FLOATS", "KERNELS", "LIBRARY", "UNPACKING", "Plugin",
    "compiled",
]  # fmt: skip

BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def compiled(layouts: Iterable[Layout]) -> tuple[Layout, ...]:
    """Those whose codes the library has kernels for."""

    def is_in(layout: Layout) -> bool:
        element = getattr(layout, "element", None)
        return getattr(layout, "bits", BITS[0]) in BITS and element in (None, "e2m1", *FLOATS)

    return tuple(layout for layout in layouts if is_in(layout))


class Plugin:
    """What a plugin of all families would give."""

    @hookimpl
    def quantry_kernels(self) -> Iterable[Kernel]:
        return KERNELS

    @hookimpl
    def quantry_conversions(self) -> Iterable[Conversion]:
        return CONVERSIONS

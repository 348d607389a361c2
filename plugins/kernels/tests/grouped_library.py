"""The test library: every family of the grouped kernels, compiled on first use, as a plugin would give them.

`QUANTRY_SANITIZE=1` compiles it with AddressSanitizer and UBSan, in a folder of its own.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from quantry import Conversion, Kernel, NativeLibrary, hookimpl, panel_conversions, panel_kernels
from quantry.panels.conversions import UNPACKING

TESTS = Path(__file__).parent
SANITIZED = os.environ.get("QUANTRY_SANITIZE") == "1"
BUILD = TESTS.parent / "build" / ("tests-sanitized" if SANITIZED else "tests")
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
__all__ = ["BUILD", "BY_NAME", "CONVERSIONS", "KERNELS", "LIBRARY", "UNPACKING", "Plugin"]

BY_NAME = {kernel.name: kernel for kernel in KERNELS}


class Plugin:
    """What a plugin of all families would give."""

    @hookimpl
    def quantry_kernels(self) -> Iterable[Kernel]:
        return KERNELS

    @hookimpl
    def quantry_conversions(self) -> Iterable[Conversion]:
        return CONVERSIONS

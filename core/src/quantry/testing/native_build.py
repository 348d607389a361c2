"""What the compiler made of a plugin's kernels: checks of its object files, with nm and objdump."""

from __future__ import annotations

import re
import shutil
import subprocess
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from quantry.testing.suite import Suite

__all__ = ["NativeBuildSuite"]

_SPILL = re.compile(r"%[zy]mm\d+,-?(0x[0-9a-f]+)?\(%r[sb]p")
_NEWEST_GLIBC = 28  # manylinux_2_28


class NativeBuildSuite(Suite):
    """Subclass it and say where the objects of `quantry_add_library` and the library lie.

    ```python
    class TestBuild(NativeBuildSuite):
        def objects(self, target):
            return sorted(BUILD.glob(f"**/quantry_gptq_cpu_{target}.dir/**/*.o"))

        def shared_library(self):
            return BUILD / "quantry_gptq_cpu.so"
    ```
    Needs binutils on Linux; on machines without them, or without objects, its facts are skipped.
    """

    targets: ClassVar[Sequence[str]] = ("scalar", "avx2", "avx512", "neon")
    in_registers: ClassVar[Mapping[str, str]] = {"avx512": "micro_", "avx2": "micro_(int8|float|dense)"}
    """Target → regular expression of functions that may store no vector to the stack. AVX2 has half the
    registers: its fused kernels for few rows may spill outside their inner loop."""

    def objects(self, target: str) -> Sequence[Path]:
        """Object files of one instruction set."""
        return ()

    def shared_library(self) -> Path | None:
        """The linked library."""
        return None

    def cases(self) -> Sequence[str]:
        """Instruction sets."""
        return self.targets

    def test_no_symbol_is_shared_by_targets(self, case: str) -> None:
        """A weak symbol would let the linker keep one target's copy, with its instructions, for all."""
        for path in self._objects(case):
            weak = [line for line in _run("nm", str(path)).splitlines() if re.search(r" [WVuw] ", line)]
            assert not weak, f"{path.name} of {case}: {weak[0]}"

    def test_micro_kernels_keep_their_sums_in_registers(self, case: str) -> None:
        if case not in self.in_registers:
            return
        for path in self._objects(case):
            function, spills = "", []
            for line in _run("objdump", "-d", "-C", "--no-show-raw-insn", str(path)).splitlines():
                if line.endswith(">:"):
                    function = line
                elif _SPILL.search(line) and re.search(rf"\b{self.in_registers[case]}\w*<", function):
                    spills.append(f"{function}\n{line}")
            assert not spills, f"{path.name} of {case}: {len(spills)} spills, first\n{spills[0]}"

    def test_only_avx512_objects_use_its_registers(self, case: str) -> None:
        if case in ("scalar", "avx2"):
            for path in self._objects(case):
                wide = "%zmm" in _run("objdump", "-d", "--no-show-raw-insn", str(path))
                assert not wide, f"{path.name} of {case} uses zmm registers"

    def test_the_library_needs_libc_and_openmp_only(self) -> None:
        library = self.shared_library()
        if library is None or not library.is_file() or shutil.which("nm") is None:
            raise unittest.SkipTest("there is no library to look at")
        for line in _run("nm", "-D", "--undefined-only", str(library)).splitlines():
            kind, symbol = line.split()
            version = re.search(r"@GLIBC_2\.(\d+)", symbol)
            old = version is not None and int(version[1]) <= _NEWEST_GLIBC
            assert kind == "w" or old or symbol.startswith(("GOMP_", "omp_")), (
                f"{library.name} needs {symbol}"
            )

    def _objects(self, target: str) -> Sequence[Path]:
        found = self.objects(target) if shutil.which("objdump") else ()
        if not found:
            raise unittest.SkipTest(f"no objects for {target}, or no objdump")
        return found


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
    return done.stdout

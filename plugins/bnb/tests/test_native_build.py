"""What the compiler made of the kernels: checks of the objects of the editable build."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from quantry.testing import NativeBuildSuite

BUILD = Path(__file__).parents[1] / "build"


class TestBuild(NativeBuildSuite):
    def objects(self, target: str) -> list[Path]:
        return sorted(BUILD.glob(f"py3-none-*/CMakeFiles/quantry_bnb_cpu_{target}.dir/**/*.o"))

    def shared_library(self) -> Path:
        return Path(str(files("quantry_bnb") / "_native" / "quantry_bnb_cpu.so"))

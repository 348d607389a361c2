"""What the compiler made of the kernels: checks of the objects of the editable build."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from quantry.testing import NativeBuildSuite, PluginSuite

PLUGIN = Path(__file__).parents[1]


class TestBuild(NativeBuildSuite):
    def objects(self, target: str) -> list[Path]:
        return sorted((PLUGIN / "build").glob(f"py3-none-*/CMakeFiles/quantry_hqq_cpu_{target}.dir/**/*.o"))

    def shared_library(self) -> Path:
        return Path(str(files("quantry_hqq") / "_native" / "quantry_hqq_cpu.so"))


class TestPlugin(PluginSuite):
    name = "hqq"

"""What the compiler made of the kernels: checks of the objects, and the NEON target under emulation."""

from __future__ import annotations

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from kernel_weights import KINDS, decoded, random_blocks, rounding_block

from quantry.testing import NativeBuildSuite
from quantry_gguf.native import TARGETS
from quantry_gguf.panel import PLANES
from quantry_gguf.types import BY_NAME

PLUGIN = Path(__file__).parents[1]


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )
    return done.stdout


class TestBuild(NativeBuildSuite):
    """The objects of the editable build: `make setup`."""

    def objects(self, target: str) -> list[Path]:
        return sorted((PLUGIN / "build").glob(f"py3-none-*/CMakeFiles/quantry_gguf_cpu_{target}.dir/**/*.o"))

    def shared_library(self) -> Path:
        return Path(str(files("quantry_gguf") / "_native" / "quantry_gguf_cpu.so"))


@pytest.mark.slow
def test_neon_computes_what_float64_says(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user (apt-get install)")
    runner = build_for_arm(compiler)
    cases = [
        (kind, exact, m, rows)
        for kind in KINDS
        for exact in (0, 1)
        for m, rows in ((1, 33), (5, 16), (11, 47))
    ]
    write_cases(tmp_path / "cases.bin", cases)
    for target in ("scalar", "neon"):
        results = tmp_path / f"{target}.bin"
        run(
            emulator,
            "-L",
            "/usr/aarch64-linux-gnu",
            runner,
            str(TARGETS.index(target)),
            tmp_path / "cases.bin",
            results,
        )
        check_results(results.read_bytes(), cases)


def build_for_arm(compiler: str) -> Path:
    build = PLUGIN / "build" / "test-aarch64"
    kernels = files("quantry_kernels") / "cmake"
    run(
        "cmake", "-S", PLUGIN, "-B", build, "-G", "Ninja", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
        f"-DCMAKE_CXX_COMPILER={compiler}", "-DSKBUILD_PROJECT_NAME=quantry_gguf",
        f"-Dquantry_kernels_DIR={kernels}",
    )  # fmt: skip
    run("cmake", "--build", build)
    runner = build / "run_cases"
    source = PLUGIN / "native" / "check" / "run_cases.cpp"
    run(
        compiler,
        "-std=c++17",
        "-O1",
        source,
        build / "quantry_gguf_cpu.so",
        f"-Wl,-rpath,{build}",
        "-o",
        runner,
    )
    return runner


def draw(kind: str, m: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks [rows, row bytes], x [m, columns], dy [m, rows]."""
    ggml = BY_NAME[kind]
    rng = np.random.default_rng(ggml.id + m)
    columns = 2 * ggml.block
    blocks = random_blocks(kind, (rows, 2), 1e-2, ggml.id + m)
    x, dy = (rng.standard_normal((m, size)).astype(np.float32) for size in (columns, rows))
    return blocks.reshape(rows, -1), x, dy


def write_cases(path: Path, cases: list[tuple[str, int, int, int]]) -> None:
    with path.open("wb") as f:
        for kind, exact, m, rows in cases:
            blocks, x, dy = draw(kind, m, rows)
            header = np.array([BY_NAME[kind].id, exact, m, rows, x.shape[1]], np.int64)
            f.write(header.tobytes() + blocks.tobytes() + x.tobytes() + dy.tobytes())


def check_results(data: bytes, cases: list[tuple[str, int, int, int]]) -> None:
    at = 0

    def take(dtype: type, *shape: int) -> np.ndarray:
        nonlocal at
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        at += size
        return np.frombuffer(data[at - size : at], dtype).reshape(shape)

    for kind, exact, m, rows in cases:
        blocks, x, dy = draw(kind, m, rows)
        wide = decoded(kind, blocks.reshape(rows, 2, -1))
        if kind in PLANES:
            assert np.array_equal(take(np.uint8, *blocks.shape), blocks)
        block = rounding_block(kind)
        amax = np.abs(x).reshape(m, -1, block).max(-1).astype(np.float64)
        rounded = 0 if exact else 1.00001 * (amax / 254) @ np.abs(wide).reshape(rows, -1, block).sum(-1).T
        # a format with minimums adds larger terms than |w|: at most twice the largest of its block
        largest = np.abs(wide).reshape(rows, -1, block).max(-1).repeat(block, 1)
        sums = 2.0**-22 * (2 + x.shape[1] / block) * (np.abs(x) @ largest.T)
        assert (np.abs(take(np.float32, m, rows) - x @ wide.T) <= rounded + sums).all()
        allowed = 2.0**-23 * (4 + rows / 32) * (np.abs(dy) @ np.abs(wide)) + 1e-30
        assert (np.abs(take(np.float32, m, x.shape[1]) - dy @ wide) <= allowed).all()
        assert np.array_equal(take(np.float32, *wide.shape), wide.astype(np.float32))
    assert at == len(data)

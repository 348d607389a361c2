"""What the compiler made of the kernels: checks of the objects, and the NEON target under emulation."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from quantry_gguf.native import TARGETS
from quantry_gguf.panel import PLANES
from quantry_gguf.types import BY_NAME

PLUGIN = Path(__file__).parents[1]
SPILL = re.compile(r"%[zy]mm\d+,-?(0x[0-9a-f]+)?\(%r[sb]p")
HALVES = {"q4_1": (0, 2), "q5_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )
    return done.stdout


def objects(target: str) -> list[Path]:
    """The objects of the editable build for one instruction set."""
    found = sorted((PLUGIN / "build").glob(f"py3-none-*/CMakeFiles/quantry_gguf_cpu_{target}.dir/**/*.o"))
    if not found:
        pytest.skip(
            f"no objects for {target} under plugin_gguf/build: `make native` on a machine that has it"
        )
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_no_symbol_is_shared_by_targets(target: str) -> None:
    """A weak symbol would let the linker keep one target's copy, with its instructions, for all."""
    for path in objects(target):
        assert not [line for line in run("nm", path).splitlines() if re.search(r" [WVuw] ", line)], path


@pytest.mark.parametrize(("target", "kernels"), [("avx512", "micro_"), ("avx2", "micro_(int8|float|dense)")])
def test_micro_kernels_keep_their_sums_in_registers(target: str, kernels: str) -> None:
    """AVX2 has half the registers: its fused kernels for few rows may spill outside their inner loop."""
    for path in objects(target):
        function, spills = "", []
        for line in run("objdump", "-d", "-C", "--no-show-raw-insn", path).splitlines():
            if line.endswith(">:"):
                function = line
            elif SPILL.search(line) and re.search(rf"\b{kernels}\w*<", function):
                spills.append(f"{function}\n{line}")
        assert not spills, f"{path}: {len(spills)} spills, first\n{spills[0]}"


@pytest.mark.parametrize("target", ["scalar", "avx2"])
def test_only_avx512_objects_use_its_registers(target: str) -> None:
    for path in objects(target):
        assert "%zmm" not in run("objdump", "-d", "--no-show-raw-insn", path)


def test_the_library_needs_libc_and_openmp_only() -> None:
    library = files("quantry_gguf") / "_native" / "quantry_gguf_cpu.so"
    if not library.is_file():
        pytest.skip("the native library is not installed: `make native`")
    for line in run("nm", "-D", "--undefined-only", Path(str(library))).splitlines():
        kind, symbol = line.split()
        version = re.search(r"@GLIBC_2\.(\d+)", symbol)
        openmp = symbol.startswith(("GOMP_", "omp_"))
        assert kind == "w" or openmp or (version and int(version[1]) <= 28), symbol


@pytest.mark.slow
def test_neon_computes_what_float64_says(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user (apt-get install)")
    runner = build_for_arm(compiler)
    cases = [
        (kind, exact, m, rows)
        for kind in PLANES
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
    blocks = rng.integers(0, 256, (rows, 2, ggml.block_bytes), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        scales = (rng.standard_normal((rows, 2)) * 1e-2).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
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
        dense = dequantize(blocks, GGMLQuantizationType[kind.upper()])
        wide = dense.astype(np.float64)
        assert np.array_equal(take(np.uint8, *blocks.shape), blocks)
        block = 256 if BY_NAME[kind].block == 256 else 32
        amax = np.abs(x).reshape(m, -1, block).max(-1).astype(np.float64)
        rounded = 0 if exact else 1.00001 * (amax / 254) @ np.abs(wide).reshape(rows, -1, block).sum(-1).T
        # a format with minimums adds larger terms than |w|: at most twice the largest of its block
        largest = np.abs(wide).reshape(rows, -1, block).max(-1).repeat(block, 1)
        sums = 2.0**-22 * (2 + x.shape[1] / block) * (np.abs(x) @ largest.T)
        assert (np.abs(take(np.float32, m, rows) - x @ wide.T) <= rounded + sums).all()
        allowed = 2.0**-23 * (2 + rows / 32) * (np.abs(dy) @ np.abs(wide)) + 1e-30
        assert (np.abs(take(np.float32, m, x.shape[1]) - dy @ wide) <= allowed).all()
        assert np.array_equal(take(np.float32, *dense.shape), dense)
    assert at == len(data)

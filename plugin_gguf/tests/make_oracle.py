"""Write fixtures/ggml/<type>.npz from llama.cpp's own C library, for test_oracle.py and test_encode.py.

    python make_oracle.py SDIST [BUILD_FOLDER]

SDIST: llama_cpp_python-0.3.36.tar.gz (PyPI) or its unpacked folder; it vendors llama.cpp, whose target
`ggml-base` is built without -march, so that no multiply-add is contracted. Needs cmake, ninja and a C++
compiler; about 10 s.

Every type: `blocks` uint8 [n, block_bytes], `values` uint32 [n, block], the bits `to_float` gives. rows.npz:
`rows` float32 [m, 256] and `importance` [256]. Types with an encoder: `encoded` uint8 [m, row_bytes] of those
rows, and where importance counts `encoded_importance`.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from ggml_samples import float_rows, raw_blocks

from quantry_gguf.encode import QUANTIZERS
from quantry_gguf.types import TYPES, GgmlType

ENCODED = {q.layout_for((1, 256), "f32").type: q.takes_importance for q in QUANTIZERS}
ACTIVATIONS = {"q8_1": "quantize_row_q8_1_ref", "q8_k": "quantize_row_q8_K_ref"}
FOLDER = Path(__file__).parent / "fixtures" / "ggml"
COLUMNS = 256


def build(sdist: Path, folder: Path) -> Path:
    """The shared library `ggml-base`."""
    if sdist.is_file():
        with tarfile.open(sdist) as archive:
            members = [m for m in archive if "/vendor/llama.cpp/ggml/" in m.name]
            archive.extractall(folder, members, filter="data")
        sdist = folder
    (source,) = sdist.glob("**/vendor/llama.cpp/ggml")
    (source / "ggml.pc.in").touch()  # missing from the sdist, demanded by its CMakeLists.txt
    options = ["GGML_BUILD_TESTS", "GGML_BUILD_EXAMPLES", "GGML_OPENMP", "GGML_NATIVE"]
    defines = [f"-D{name}=OFF" for name in options]
    out = folder / "build"
    subprocess.run(
        ["cmake", "-S", source, "-B", out, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *defines], check=True
    )
    subprocess.run(["cmake", "--build", out, "--target", "ggml-base"], check=True)
    return next(p for suffix in ("so", "dylib") for p in out.glob(f"**/libggml-base.{suffix}"))


class Ggml:
    """The few functions of libggml-base that the fixtures need."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        for t in TYPES:
            traits = self.lib.ggml_get_type_traits(t.id).contents
            assert (traits.block, traits.block_bytes) == (t.block, t.block_bytes), t

    def dequantize(self, t: GgmlType, blocks: np.ndarray) -> np.ndarray | None:
        """float32 bits [n, block]; None for Q8_1, which ggml cannot decode."""
        to_float = self.lib.ggml_get_type_traits(t.id).contents.to_float
        if t.name == "q8_k":
            to_float = ctypes.cast(self.lib.dequantize_row_q8_K, _TO_FLOAT)
        if not to_float:
            return None
        out = np.zeros((len(blocks), t.block), np.float32)
        to_float(blocks.ctypes.data, out.ctypes.data, out.size)
        return out.view(np.uint32)

    def quantize(self, t: GgmlType, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
        """uint8 [m, row_bytes]."""
        count, columns = rows.shape
        out = np.zeros((count, t.row_bytes(columns)), np.uint8)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        if t.name in ACTIVATIONS:
            function = getattr(self.lib, ACTIVATIONS[t.name])
            function(pointer(rows.ctypes.data), pointer(out.ctypes.data), size(rows.size))
            return out
        weights = None if importance is None else pointer(importance.ctypes.data)
        source, target = pointer(rows.ctypes.data), pointer(out.ctypes.data)
        self.lib.ggml_quantize_chunk(t.id, source, target, size(0), size(count), size(columns), weights)
        return out


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """The head of ggml.h `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


def encoder_input() -> dict[str, np.ndarray]:
    """The arrays of rows.npz."""
    importance = np.random.default_rng(13).random(COLUMNS, np.float32)
    importance[::7] = 0
    importance[::50] = 1e4
    return {"rows": np.concatenate(list(float_rows(COLUMNS, seed=11).values())), "importance": importance}


def fixture(ggml: Ggml, t: GgmlType, rows: np.ndarray, importance: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of one type."""
    blocks = raw_blocks(t.name, 16 if t.block == 32 else 4, seed=7)
    if t.name in ("mxfp4", "nvfp4"):  # the special scale bytes among the 256
        blocks = np.concatenate([blocks[:18], blocks[-256::36], blocks[[-255, -2, -1]]])
    if t.name.startswith(("iq1", "iq2")):
        normal = np.random.default_rng(17).standard_normal((2, 512), np.float32)
        encoded = ggml.quantize(t, normal, np.ones(512, np.float32))
        blocks = np.concatenate([blocks, encoded.reshape(-1, t.block_bytes)])
    arrays = {"blocks": blocks}
    values = ggml.dequantize(t, blocks)
    if values is not None:
        arrays["values"] = values
    if t.name in ENCODED:
        arrays["encoded"] = ggml.quantize(t, rows)
    if ENCODED.get(t.name):
        arrays["encoded_importance"] = ggml.quantize(t, rows, importance)
    return arrays


def main(sdist: str, folder: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        ggml = Ggml(build(Path(sdist), Path(folder or temporary)))
        FOLDER.mkdir(parents=True, exist_ok=True)
        source = encoder_input()
        np.savez_compressed(FOLDER / "rows.npz", **source)
        for t in TYPES:
            if not t.is_dense:
                np.savez_compressed(FOLDER / f"{t.name}.npz", **fixture(ggml, t, **source))


if __name__ == "__main__":
    main(*sys.argv[1:])

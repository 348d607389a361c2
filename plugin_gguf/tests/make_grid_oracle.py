"""Write fixtures/ggml/iq1_rows.npz from llama.cpp's own C library, for test_encode_grid.py.

    python make_grid_oracle.py SDIST [BUILD_FOLDER]

SDIST and what it takes: make_oracle.py. IQ1 alone: the other grid types are tested against `libgguf`, whose C
code sums IQ1_M in another order and takes 9 s to prepare IQ1_S. `rows` float32 [m, 512], `importance_<kind>`
[512], and the bytes `<type>_<kind>`, `iq1_m_none` uint8 [m, row_bytes].
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from grid_samples import IMPORTANCES, grid_rows, importance_of
from make_oracle import FOLDER, Ggml, build

from quantry_gguf.types import BY_NAME

COLUMNS = 512


def main(sdist: str, folder: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        ggml = Ggml(build(Path(sdist), Path(folder or temporary)))
        rows = np.concatenate(list(grid_rows(COLUMNS, seed=21).values()))
        arrays = {"rows": rows, "iq1_m_none": ggml.quantize(BY_NAME["iq1_m"], rows)}
        for kind in IMPORTANCES:
            importance = arrays[f"importance_{kind}"] = importance_of(kind, COLUMNS)
            for name in ("iq1_s", "iq1_m"):
                arrays[f"{name}_{kind}"] = ggml.quantize(BY_NAME[name], rows, importance)
        np.savez_compressed(FOLDER / "iq1_rows.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

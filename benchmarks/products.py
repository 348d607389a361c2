"""The kernels of this repository and their peers on the shapes of the targets: `make bench` runs it.

Layouts that no format plugin serves yet run on the library that the tests of plugins/kernels compile. Results
are files of `quantry bench`'s JSON in results/, from which table.py makes the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from table import write as write_tables

from quantry.bench.run import Settings, benchmark, settings_from
from quantry.testing import installed

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LARGE, SMALL = "14336x4096", "640x2048"
MODES = ("exact", "strict", "fast")

# of each family and width one, and what the targets name
SOME = (
    "ggml:q4_0", "ggml:q8_0", "ggml:q2_k", "ggml:q4_k", "ggml:q6_k", "ggml:iq4_xs", "ggml:iq2_xs",
    "affine:b4,g32,in,mid,f16", "affine:b4,g128,in,int,f16", "affine:b8,g128,in,int,f16",
    "codebook:nf4,g64,f32", "float:e4m3,1x0,f32", "dense:bf16",
)  # fmt: skip
FEW = ("ggml:q4_k", "ggml:q8_0", "affine:b4,g128,in,int,f16", "codebook:nf4,g64,f32")


def problem(shape: str, rows: int, layouts: tuple[str, ...] = (), dtype: str = "f32") -> Settings:
    known = settings_from(layouts, [shape], [rows], MODES, "cpu", dtype, peers=True)
    return replace(known, most_s=6.0)


def problems() -> dict[str, Settings]:
    """File name → what is in it. Layouts are looked up, so plugins must be there."""
    return {
        "gemv": problem(LARGE, 1),
        "gemv-small": problem(SMALL, 1, SOME),
        "gemv-bf16": problem(LARGE, 1, FEW, "bf16"),
        "batch-8": problem(LARGE, 8, SOME),
        "gemm": problem(LARGE, 256, SOME),
        "gemm-bf16": problem(LARGE, 256, FEW, "bf16"),
    }


@contextlib.contextmanager
def grouped_kernels() -> Iterator[None]:
    """The families that have kernels and no plugin, for as long as the block runs."""
    sys.path.insert(0, str(ROOT / "plugins" / "kernels" / "tests"))
    from grouped_library import Plugin

    with installed(Plugin(), name="grouped"):
        yield


def taken(settings: Settings) -> dict[str, Any]:
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        print(sentence, file=sys.stderr)

    return {**benchmark(settings, say), "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="some of the problems; default: all")
    parser.add_argument("--rounds", type=int, help="fewer than the protocol asks for: to try the script out")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with grouped_kernels():
        known = problems()
        for name in options.names or known:
            start = time.perf_counter()
            found = taken(replace(known[name], rounds=options.rounds))
            path = options.output / f"kernels-{name}.json"
            path.write_text(_text(_short(found)), encoding="utf-8")
            print(f"{path} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    write_tables(options.output)


def _text(found: dict[str, Any]) -> str:
    """JSON with a line for each key and each row."""
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in found["rows"])
    head = [
        f" {json.dumps(key)}: {json.dumps(found[key], ensure_ascii=False)}" for key in found if key != "rows"
    ]
    return "{\n" + ",\n".join([*head, f' "rows": [\n{rows}\n ]']) + "\n}\n"


def _short(value: Any) -> Any:
    """Four digits: more are noise, and noise in every commit."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()

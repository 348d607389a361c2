"""The tables of benchmarks/results are those that the script makes of the data beside them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_table", BENCHMARKS / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def row(kernel: str, nbytes: int, **more: Any) -> dict[str, Any]:
    return {
        "kernel": kernel, "peer": None, "layout": "ggml:q4_k", "numerics": "strict",
        "activations": "int8/256", "dtype": "f32", "chosen": True, "n": 64, "k": 256, "m": 1,
        "nbytes": nbytes, "time_us": 10.4, "gbps": 1.26, "gflops": 3.0,
        "roof_fraction": 0.912, "roof_fraction_quartiles": [0.9, 0.93],
        "over_peers": {}, **more,
    }  # fmt: skip


def test_the_committed_tables_are_those_of_the_committed_data(table):
    committed = (BENCHMARKS / "results" / "README.md").read_text(encoding="utf-8")
    assert committed == table.page(BENCHMARKS / "results"), "run: python benchmarks/table.py --write"


def test_the_fastest_peer_is_one_that_reads_as_many_bytes(table, tmp_path):
    ratios = {"dense q dense:bf16": 1.5, "same q 4 bit": 1.25, "fewer q 2 bit": 0.5, "more q 8 bit": 0.75}
    peers = [
        row("q", nbytes, peer=name, layout=width, over_peers={})
        for name, width, nbytes in (
            ("dense", "dense:bf16", 4000),
            ("same", "4 bit", 1000),
            ("fewer", "2 bit", 500),
            ("more", "8 bit", 2000),
        )
    ]
    found = {
        "machine": {"cpu": "C", "features": ["avx2"], "threads": 2, "cores": 4, "versions": {"torch": "2"}},
        "roof": "some.roof", "roof_gbps": 40.0, "roof_gbps_p10": 30.0, "roof_gbps_max": 50.0,
        "peak_gflops_by_type": {"int8": 1000.0}, "dropped": 3,
        "rows": [row("ours", 1100, over_peers=ratios), *peers],
    }  # fmt: skip
    (tmp_path / "kernels-one.json").write_text(json.dumps(found))
    page = table.page(tmp_path)
    assert "same q 4 bit | 1.25 |" in page
    assert "| **ours** | strict | f32 → int8/256 | 10 | 1.3 | 3 | 0.91 (0.90–0.93) |" in page
    assert "2 threads of 4; memory 40.0 GB/s (10 %: 30.0, most: 50.0) by some.roof" in page

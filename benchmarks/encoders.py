"""Quantizers against the encoders whose bytes they claim: equality, speed of a core, speed of two.

    python benchmarks/encoders.py --ggml llama_cpp_python-0.3.36.tar.gz
    python benchmarks/encoders.py --ggml build/src/libggml-base.so q4_k iq4_xs --output /tmp

--ggml: the sdist of llama-cpp-python (`pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36`),
its unpacked folder, or the library `ggml-base` built from it without -march (make_oracle.py in
plugin_gguf/tests does that): the C code whose bytes are the reference. Without it the package libgguf, the
same C code, stands in; it lacks Q8_1, Q8_K and Q2_0, and sums IQ1_M in another order. Names: only these.

Bytes are compared on rows of every kind that encodes badly (plugin_gguf/tests/ggml_samples.py); where they
differ, squared errors per row are, ours over theirs. Rates are MB of float32 input a second, the best of
interleaved rounds on normal weights, through the public call. Run it on a quiet machine; five minutes.

A further encoder to compare with is a function that yields `Entry` values, added to ENTRIES.
Results: encoders.json and encoders.md in results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantry import QuantizedTensor, Quantizer
from quantry.bench.machine import describe
from quantry.plugins import registry

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COLUMNS = 4096
LEAST_S, MOST_ROWS = 0.02, 4096  # of one timed call
sys.path.insert(0, str(ROOT / "plugin_gguf" / "tests"))

Encode = Callable[[np.ndarray, np.ndarray | None], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Entry:
    """A quantizer and the encoder it is held against.

    theirs: float32 rows [N, K] and importance [K] or None → the quantizer's buffers by name; None: no such
    encoder, only our rate is taken. importance: what is tried, of False and True. rows: what bytes are
    compared on, by kind.
    """

    quantizer: Quantizer
    peer: str
    theirs: Encode | None
    importance: tuple[bool, ...]
    rows: Mapping[str, np.ndarray]

    def ours(self, rows: np.ndarray, importance: np.ndarray | None) -> QuantizedTensor:
        weight = torch.from_numpy(rows)
        stats = None if importance is None else torch.from_numpy(importance)
        return self.quantizer.quantize(weight, self.quantizer.layout_for(tuple(weight.shape), "f32"), stats)


@dataclass(frozen=True)
class Result:
    """One line of the table. Rates in MB/s of float32 read; None where there is no peer."""

    type: str
    importance: bool
    peer: str
    rows: int
    equal_rows: int | None
    error_ratio: float | None
    mbps: float
    mbps_2_threads: float
    peer_mbps: float | None

    @property
    def speedup(self) -> float | None:
        """One thread of ours over one of theirs."""
        return None if self.peer_mbps is None else self.mbps / self.peer_mbps


def ggml_entries(source: Path | None) -> Iterator[Entry]:
    """Every quantizer of quantry-gguf, by the registry."""
    from ggml_samples import float_rows
    from grid_samples import grid_rows

    from quantry_gguf.types import BY_NAME

    kinds, in_range = (make(1024, seed=5, repeat=20) for make in (float_rows, grid_rows))
    peer, encode, known = _ggml(source)
    for quantizer in registry().quantizers.values():
        layout = quantizer.layout_for((1, COLUMNS), "f32")
        if layout.family != "ggml":
            continue
        ggml = BY_NAME[str(layout).partition(":")[2]]
        tried = tuple(
            weighted
            for weighted in (False, True)
            if (quantizer.takes_importance or not weighted) and (weighted or quantizer.needs == "none")
        )
        theirs: Encode | None = None
        if ggml.name in known:

            def theirs(
                rows: np.ndarray, importance: np.ndarray | None, t: Any = ggml
            ) -> dict[str, np.ndarray]:
                return {"blocks": encode(t, rows, importance)}

        # llama.cpp ends the process where a grid type's sums overflow
        grid = ggml.name.startswith(("iq1", "iq2", "iq3"))
        yield Entry(quantizer, peer, theirs, tried, in_range if grid else kinds)


def afq_entries(source: Path | None) -> Iterator[Entry]:
    """AFQ against `mx.quantize` on the CPU (pip install mlx[cpu])."""
    import mlx.core as mx
    from ggml_samples import float_rows

    kinds = {kind: rows for kind, rows in float_rows(1024, seed=5, repeat=20).items() if kind != "1e38"}
    for bits in (2, 3, 4, 5, 6, 8):

        def theirs(
            rows: np.ndarray, importance: np.ndarray | None, bits: int = bits
        ) -> dict[str, np.ndarray]:
            codes, scales, biases = mx.quantize(mx.array(rows), group_size=64, bits=bits)
            mx.eval(codes, scales, biases)
            packed = np.array(codes).view(np.uint8).reshape(len(rows), -1)
            return {"codes": packed, "scales": np.array(scales), "biases": np.array(biases)}

        yield Entry(registry().quantizers[f"afq{bits}"], "mlx", theirs, (False,), kinds)


ENTRIES: tuple[Callable[[Path | None], Iterable[Entry]], ...] = (ggml_entries, afq_entries)


def _ggml(
    source: Path | None,
) -> tuple[str, Callable[[Any, np.ndarray, np.ndarray | None], np.ndarray], set[str]]:
    """Name, encoder and known types of llama.cpp's C code."""
    from quantry_gguf.types import TYPES

    quantized = {t.name for t in TYPES if not t.is_dense}
    if source is None:
        import libgguf

        def encode(t: Any, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
            found: np.ndarray = libgguf.quantize_rows(rows, t.id, importance)
            return found

        return "libgguf", encode, quantized - {"q8_1", "q8_k", "q2_0"}
    from make_oracle import Ggml, build

    with contextlib.ExitStack() as stack:
        if source.suffix not in (".so", ".dylib"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = build(source, folder)
        return "ggml-base", Ggml(source).quantize, quantized


def compare(entry: Entry, weighted: bool) -> tuple[int, int, float]:
    """Rows, rows of equal bytes, the largest squared error of a row of ours over theirs."""
    assert entry.theirs is not None
    count, equal, worst = 0, 0, 1.0
    for rows in entry.rows.values():
        importance = _importance(rows.shape[1]) if weighted else None
        ours = entry.ours(rows, importance)
        theirs = {n: torch.from_numpy(b) for n, b in entry.theirs(rows, importance).items()}
        same = torch.ones(len(rows), dtype=torch.bool)
        for name, buffer in ours.buffers.items():
            same &= (buffer == theirs[name]).reshape(len(rows), -1).all(1)
        count, equal = count + len(rows), equal + int(same.sum())
        if not same.all():
            weight = torch.from_numpy(rows).double()
            errors = [
                (ours.layout.dequantize(b, rows.shape).double() - weight).square().sum(1)
                for b in (ours.buffers, theirs)
            ]
            worst = max(worst, (errors[0] / errors[1])[~same].max().item())
    return count, equal, worst


def measure(entry: Entry, weighted: bool, rounds: int) -> Result:
    """Equality on hard rows, rates on normal ones."""
    rows, equal, worst = compare(entry, weighted) if entry.theirs else (0, None, None)
    importance = _importance(COLUMNS) if weighted else None
    weight = np.random.default_rng(1).standard_normal((MOST_ROWS, COLUMNS), np.float32) * np.float32(0.02)

    def ours(part: np.ndarray) -> object:
        return entry.ours(part, importance)

    def theirs(part: np.ndarray) -> object:
        return entry.theirs(part, importance) if entry.theirs else None

    torch.set_num_threads(1)
    mine, other = _enough(ours, weight), _enough(theirs, weight) if entry.theirs else None
    rates: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        torch.set_num_threads(1)
        rates[0].append(_rate(ours, mine))
        if other is not None:
            rates[1].append(_rate(theirs, other))
        torch.set_num_threads(2)
        rates[2].append(_rate(ours, mine))
    one, peer, two = (max(r, default=None) for r in rates)
    assert one is not None
    assert two is not None
    return Result(entry.quantizer.name, weighted, entry.peer, rows, equal, worst, one, two, peer)


def page(machine: Mapping[str, Any], results: Iterable[Result]) -> str:
    """The Markdown table."""
    versions = ", ".join(f"{dist} {number}" for dist, number in machine["versions"].items())
    lines = [
        "# Encoders and their peers\n",
        f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['cores']} cores; {versions}.\n",
        "Made by `benchmarks/encoders.py`. Rates: MB of float32 weights a second, of one thread where nothing"
        " else is said. Error: the largest squared error of a row, ours over theirs, where bytes differ.\n",
        "| type | importance | peer | rows of equal bytes | error | MB/s | peer's | times | 2 threads |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        equal, error, rate, times = "", "", "", ""
        if r.peer_mbps is not None and r.speedup is not None:
            equal, rate, times = f"{r.equal_rows} of {r.rows}", f"{r.peer_mbps:.1f}", f"{r.speedup:.1f}"
            error = "" if r.equal_rows == r.rows else f"{r.error_ratio:.4f}"
        given = "yes" if r.importance else "no"
        lines.append(
            f"| `{r.type}` | {given} | {r.peer} | {equal} | {error} | {r.mbps:.0f} | {rate} | {times} |"
            f" {r.mbps_2_threads:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="some of the quantizers; default: all")
    parser.add_argument("--ggml", type=Path, help="sdist of llama-cpp-python, or libggml-base")
    parser.add_argument("--rounds", type=int, default=5, help="best of so many")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = []
    for entry in (entry for entries in ENTRIES for entry in entries(options.ggml)):
        if options.names and entry.quantizer.name not in options.names:
            continue
        for weighted in entry.importance:
            results.append(measure(entry, weighted, options.rounds))
            print(json.dumps(_row(results[-1])), file=sys.stderr)
    dists = [r.peer for r in results if r.peer == "libgguf"]
    machine = describe(registry().device("cpu"), 1, dict.fromkeys(dists))
    rows = ",\n".join(f"  {json.dumps(_row(r))}" for r in results)
    text = f'{{\n "machine": {json.dumps(machine, ensure_ascii=False)},\n "rows": [\n{rows}\n ]\n}}\n'
    (options.output / "encoders.json").write_text(text, encoding="utf-8")
    (options.output / "encoders.md").write_text(page(machine, results), encoding="utf-8")
    print(page(machine, results))


def _importance(columns: int) -> np.ndarray:
    values = np.random.default_rng(2).random(columns, np.float32) ** 4
    values[::50] = 0
    return values


def _enough(call: Callable[[np.ndarray], object], weight: np.ndarray) -> np.ndarray:
    """The first rows of `weight`, as many as keep a call busy."""
    rows = 8
    while True:
        taken = _seconds(call, weight[:rows])
        if taken >= LEAST_S or rows >= len(weight):
            return weight[:rows]
        rows = min(len(weight), max(2 * rows, int(1.2 * rows * LEAST_S / taken)))


def _seconds(call: Callable[[np.ndarray], object], rows: np.ndarray) -> float:
    start = time.perf_counter()
    call(rows)
    return time.perf_counter() - start


def _rate(call: Callable[[np.ndarray], object], rows: np.ndarray) -> float:
    return rows.nbytes / 1e6 / _seconds(call, rows)


def _row(result: Result) -> dict[str, Any]:
    """Four digits: more are noise, and noise in every commit."""
    values = {**asdict(result), "speedup": result.speedup}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}


if __name__ == "__main__":
    main()

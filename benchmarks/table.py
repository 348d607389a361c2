"""Markdown tables of results/kernels-*.json.

python benchmarks/table.py            print them
python benchmarks/table.py --write    write them to results/README.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
COMPARABLE = (0.8, 1.25)
"""Bytes of a peer over ours: with fewer it would win by fewer bits. Dense peers are always compared."""

HEAD = """# Kernels and their peers

Made by `benchmarks/table.py` from the JSON files beside it; `make bench` takes them anew. A share of the roof
is the time that memory and arithmetic need at least over the time taken, the median of single calls, each
held against a probe of the memory right before and after it. `over` is the median over rounds of the time of
the fastest peer by ours, of those that read about as many bytes and the dense ones. Bold kernels are those
that the resolver chooses under that numerics.
"""


def page(results: Path) -> str:
    """All tables, in the order of the file names."""
    parts = [HEAD]
    for path in sorted(results.glob("kernels-*.json")):
        parts += _section(path.stem.removeprefix("kernels-"), json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(parts)


def write(results: Path = RESULTS) -> None:
    """The page, beside its data."""
    (results / "README.md").write_text(page(results), encoding="utf-8")


def _section(name: str, found: dict[str, Any]) -> Iterable[str]:
    machine = found["machine"]
    peaks = ", ".join(f"{kind} {gops:.0f}" for kind, gops in found["peak_gflops_by_type"].items())
    versions = ", ".join(f"{dist} {number}" for dist, number in machine["versions"].items())
    yield f"## {name}\n"
    yield (
        f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['threads']} threads of"
        f" {machine['cores']}; memory {found['roof_gbps']:.1f} GB/s (10 %: {found['roof_gbps_p10']:.1f},"
        f" most: {found['roof_gbps_max']:.1f}) by {found['roof']}; 10⁹ operations/s: {peaks};"
        f" {found['dropped']} samples dropped; {versions}.\n"
    )
    problems = dict.fromkeys((r["n"], r["k"], r["m"]) for r in found["rows"])
    for n, k, m in problems:
        rows = [r for r in found["rows"] if (r["n"], r["k"], r["m"]) == (n, k, m)]
        peers = [r for r in rows if r["peer"]]
        yield f"N={n} K={k} M={m}\n"
        yield from _table(
            (
                "layout",
                "kernel",
                "numerics",
                "x",
                "µs",
                "GB/s",
                "GF/s",
                "of the roof",
                "fastest peer",
                "over",
            ),
            [_own(r, peers) for r in rows if not r["peer"]],
        )
        if peers:
            yield from _table(
                ("peer", "weights", "x", "µs", "GB/s", "GF/s", "of the roof"),
                [
                    (f"{r['peer']} {r['kernel']}", r["layout"], _activations(r), *_figures(r))
                    for r in sorted(peers, key=lambda r: (r["peer"], r["layout"]))
                ],
            )


def _own(row: dict[str, Any], peers: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    names = [_name(p) for p in peers if _comparable(p, row)]
    ratios = {name: row["over_peers"][name] for name in names if name in row["over_peers"]}
    best = min(ratios, key=lambda name: ratios[name], default=None)
    kernel = f"**{row['kernel']}**" if row["chosen"] else row["kernel"]
    return (
        f"`{row['layout']}`", kernel, row["numerics"], _activations(row), *_figures(row),
        best or "", f"{ratios[best]:.2f}" if best else "",
    )  # fmt: skip


def _comparable(peer: dict[str, Any], row: dict[str, Any]) -> bool:
    least, most = COMPARABLE
    return peer["layout"].startswith("dense:") or least <= peer["nbytes"] / row["nbytes"] <= most


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["roof_fraction_quartiles"]
    return (
        f"{row['time_us']:.0f}",
        f"{row['gbps']:.1f}",
        f"{row['gflops']:.0f}",
        f"{row['roof_fraction']:.2f} ({low:.2f}–{high:.2f})",
    )


def _activations(row: dict[str, Any]) -> str:
    return row["dtype"] if row["activations"] == "exact" else f"{row['dtype']} → {row['activations']}"


def _name(peer: dict[str, Any]) -> str:
    return f"{peer['peer']} {peer['kernel']} {peer['layout']}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    numbers = ("µs", "GB/s", "GF/s", "of the roof", "over")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join('---:' if name in numbers else '---' for name in columns)}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        print(page(RESULTS))

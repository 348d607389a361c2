"""A picture of the shares of the roof."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from quantry.errors import UsageError

__all__ = ["draw"]

_COLOURS = {"exact": "#3b6ea5", "strict": "#2f9e6e", "fast": "#d08a2e"}
_PEER = "#9a9a9a"
_SUFFIXES = (".png", ".svg", ".pdf")


def draw(document: dict[str, Any], path: Path) -> None:
    """Bars, one panel a problem: each kernel and peer as a share of what memory and arithmetic allow.

    Raises UsageError where matplotlib is missing, or cannot write files of this suffix.
    """
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"cannot draw {path.name!r}", hint=f"End it in {', '.join(_SUFFIXES)}.")
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UsageError("--plot needs matplotlib", hint="pip install matplotlib") from None
    problems = list(dict.fromkeys((r["n"], r["k"], r["m"]) for r in document["rows"]))
    longest = max(sum((r["n"], r["k"], r["m"]) == p for r in document["rows"]) for p in problems)
    figure = figure_module.Figure(
        figsize=(7 * len(problems), max(3, 0.22 * longest + 1)), layout="constrained"
    )
    for axes, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        rows = [r for r in document["rows"] if (r["n"], r["k"], r["m"]) == problem]
        rows.sort(key=lambda r: r["roof_fraction"])
        names = [f"{r['layout']}  {r['peer'] or ''} {r['kernel']}" for r in rows]
        colours = [_PEER if r["peer"] else _COLOURS[r["numerics"]] for r in rows]
        axes.barh(range(len(rows)), [r["roof_fraction"] for r in rows], color=colours)
        axes.set_yticks(range(len(rows)), names, fontsize=7)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title("N={} K={} M={}".format(*problem), fontsize=9)
        axes.set_xlabel(f"share of the roof ({document['roof_gbps']:.0f} GB/s)", fontsize=8)
    figure.savefig(path, dpi=120)

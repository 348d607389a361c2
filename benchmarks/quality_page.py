"""The table and the plot of results/quality.json: `python benchmarks/quality_page.py [FILE]`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
_FAMILIES = ("ggml", "affine", "codebook", "float", "f8q8", "dense")


def write(path: Path = RESULTS / "quality.json") -> None:
    """`.md` and `.png` beside the JSON."""
    document = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(table(document, path.stem), encoding="utf-8")
    plot(document, path.with_suffix(".png"))


def table(document: dict[str, Any], stem: str) -> str:
    """A row per type, smallest first; with importance beside without."""
    lines = [
        f"# Quality of quantized forms of {document['model']}",
        "",
        f"{document['text_tokens']} tokens of held-out text ({document['text']}); KL divergence in nats from"
        f" the dense original, whose perplexity is {document['perplexity']:.2f}, ± its standard error over"
        " tokens. Made by `benchmarks/quality.py`, which says how; `+ importance`: collected by"
        " `quantry imatrix` over the text that it ships with.",
        "",
        f"![KL divergence over bits per weight]({stem}.png)",
        "",
        "| type | bits/weight | KL | KL + importance | change | same top token | perplexity | tok/s | text |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in sorted(
        _pairs(document["rows"]), key=lambda p: (_first(p)["bits_per_weight"], _first(p)["type"])
    ):
        plain, weighted = pair.get(False), pair.get(True)
        row = _first(pair)
        change = "" if not (plain and weighted) else f"{100 * (weighted['kl'] / plain['kl'] - 1):+.0f} %"
        label = row["type"] if row["by"] == "quantry" else f"{row['type']} ({row['by']})"
        speed = f"{row['tok_s']:.0f}" if "tok_s" in row else ""
        cells = [
            label, f"{row['bits_per_weight']:.2f}", _kl(plain), _kl(weighted), change,
            _both(pair, "same_top", 3), _both(pair, "perplexity", 2), speed,
            " ".join(row.get("text", "").split())[:48].replace("|", "/"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(document: dict[str, Any], path: Path) -> None:
    """KL over bits, both logarithmic; an arrow from without importance to with it."""
    figure, axes = plt.subplots(figsize=(11, 7), dpi=120)
    colours = dict(zip(_FAMILIES, plt.get_cmap("tab10").colors, strict=False))
    for pair in _pairs(document["rows"]):
        row = _first(pair)
        colour = colours.get(_family(row), "black")
        x = row["bits_per_weight"]
        for weighted, found in pair.items():
            axes.scatter(x, found["kl"], color=colour, facecolors=colour if weighted else "none", zorder=3)
        if len(pair) == 2:
            axes.annotate(
                "",
                (x, pair[True]["kl"]),
                (x, pair[False]["kl"]),
                arrowprops={"arrowstyle": "->", "color": colour},
            )
        axes.annotate(row["type"], (x, row["kl"]), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="bits per packed weight",
        ylabel="KL divergence from the original (nats)",
        title=f"{document['model']}: what each type costs (open: without importance, filled: with)",
    )  # fmt: skip
    axes.set_xticks([2, 3, 4, 5, 6, 8, 10, 16], ["2", "3", "4", "5", "6", "8", "10", "16"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=c, label=f) for f, c in colours.items()]
    axes.legend(handles=handles, title="layout family")
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _pairs(rows: list[dict[str, Any]]) -> list[dict[bool, dict[str, Any]]]:
    """Rows of one type and maker: with importance or without → row."""
    pairs: dict[tuple[str, str], dict[bool, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        pairs[row["type"], row["by"]][row["importance"]] = row
    return list(pairs.values())


def _first(pair: dict[bool, dict[str, Any]]) -> dict[str, Any]:
    return pair.get(False) or pair[True]


def _kl(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['kl']:.4f} ± {row['kl_error']:.4f}"


def _both(pair: dict[bool, dict[str, Any]], key: str, digits: int) -> str:
    return " → ".join(f"{pair[w][key]:.{digits}f}" for w in (False, True) if w in pair)


def _family(row: dict[str, Any]) -> str:
    """The family of most of its layouts."""
    families = [text.partition(":")[0] for text in row["layouts"]]
    return max(sorted(set(families)), key=families.count) if families else "dense"


if __name__ == "__main__":
    write(*(Path(argument) for argument in sys.argv[1:2]))

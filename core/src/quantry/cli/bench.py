"""`quantry bench`: kernels and peers against the roof of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantry.cli.progress import progress
from quantry.cli.show import json_option, print_json, print_table

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry bench
  quantry bench --layout ggml:q4_k --layout q8_0 --batch 1 --batch 256 --peers
  quantry bench --shape 640x2048 --numerics fast --json
"""


@click.command("bench", short_help="Kernels and peers against the memory roof.", epilog=_EXAMPLES)
@click.option("--layout", "layouts", multiple=True, help="ggml:q4_k, q4k, …; default: all that run here.")
@click.option(
    "--shape", "shapes", multiple=True, default=("14336x4096",), show_default=True, help="out x in features."
)
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(min=1), default=(1,), help="Rows; default 1."
)
@click.option("--numerics", multiple=True, default=("strict",), help="exact, strict (default) or fast.")
@click.option("--dtype", default="f32", show_default=True, help="Type of the activations: f32, bf16 or f16.")
@click.option("--peers", is_flag=True, help="Other libraries too, those that are installed.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps, …")
@click.option("--threads", type=click.IntRange(min=1), help="Default: torch's setting.")
@click.option("--rounds", type=click.IntRange(min=1), help="Default: 40, or 6 from 16 rows on.")
@click.option("--chosen", is_flag=True, help="Only the kernels that the resolver chooses.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the result to this file.")
@json_option
def command(as_json: bool, plot: Path | None, **options: Any) -> None:
    """Each kernel's time for one product x·Wᵀ, as a share of what memory and arithmetic allow.

    Weights are made up; each call reads a copy that no cache holds; a probe of the memory runs before and
    after each call, and shares are taken of those. --layout, --shape, --batch and --numerics may be repeated.
    """
    from quantry.bench.plot import draw
    from quantry.bench.run import benchmark, settings_from

    settings = settings_from(**options)
    with progress("bench") as tick:
        found = benchmark(settings, lambda sentence: click.echo(sentence, err=True), tick)
    if plot is not None:
        draw(found, plot)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    peaks = ", ".join(f"{kind} {gops:.0f}" for kind, gops in found["peak_gflops_by_type"].items())
    click.echo(
        f"{found['device']} ({found['device_name']}), {found['machine']['threads']} threads:"
        f" {found['roof_gbps']:.1f} GB/s by {found['roof']}, 10⁹ operations/s: {peaks}\n"
    )
    print_table(
        ("N x K", "M", "layout", "kernel", "numerics", "activations", "µs", "GB/s", "GF/s", "of the roof"),
        (
            (
                f"{r['n']}x{r['k']}", r["m"], r["layout"],
                f"{r['peer']} {r['kernel']}" if r["peer"] else ("* " if r["chosen"] else "") + r["kernel"],
                r["numerics"], f"{r['dtype']}/{r['activations']}", f"{r['time_us']:.1f}",
                f"{r['gbps']:.1f}", f"{r['gflops']:.0f}", f"{r['roof_fraction']:.2f}",
            )
            for r in found["rows"]
        ),
        right=("M", "µs", "GB/s", "GF/s", "of the roof"),
    )  # fmt: skip

"""What ISQ commands print for people: what a width means, and what became of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantry.cli.show import print_json, print_table, size_text

if TYPE_CHECKING:
    from quantry.isq import IsqResult

__all__ = ["print_isq", "show_width"]


def show_width(width: int, device: str, measure: bool, as_json: bool) -> None:
    """Which type a width stands for: one row per installed type of the width, or the JSON document."""
    from quantry.isq_types import choose_type

    choice = choose_type(width, device, measure=measure)
    if as_json:
        print_json(choice.as_json())
        return
    click.echo(f"{choice.sentence}; * is chosen\n")
    print_table(
        ("", "type", "bits/weight", "error", "kernel", "µs", "why"),
        (
            (
                "*" if c.chosen else "",
                c.type,
                f"{c.bits_per_weight:.2f}",
                None if c.expected_error is None else f"{c.expected_error:.3g}",
                c.kernel,
                None if c.time_us is None else f"{c.time_us:.0f}",
                c.reason,
            )
            for c in choice.candidates
        ),
        right=("bits/weight", "error", "µs"),
    )


def print_isq(done: IsqResult, dry_run: bool) -> None:
    """One row per output; on stderr what a width became, every weight that fell back and its reason."""
    for choice in done.choices:
        click.echo(f"{choice.sentence} (quantry explain --isq {choice.width})", err=True)
    print_table(
        ("type", "shards", "layers", "stored as", "fallbacks"),
        (
            (
                output.quant,
                len(output.shards),
                len(output.layers),
                ", ".join(f"{n} {name}" for name, n in output.actual_counts.items()),
                len(output.fallbacks),
            )
            for output in done.outputs
        ),
        right=("shards", "layers", "fallbacks"),
    )
    for layer in (layer for output in done.outputs for layer in output.fallbacks):
        click.echo(f"{layer.module} is {layer.stored}: {layer.reason}", err=True)
    for note in (output.note for output in done.outputs if output.note is not None):
        click.echo(note, err=True)
    for name, count in done.replaced.items():
        click.echo(f"{name}: {count} NaN or Inf written as 0", err=True)
    if done.resumed:
        click.echo("an interrupted run was continued", err=True)
    what = "would be written" if dry_run else "written"
    click.echo(
        f"\n{size_text(done.output_bytes)} {what} to {done.folder} in {done.seconds:.1f} s,"
        f" peak memory {size_text(done.peak_rss_bytes)}"
    )

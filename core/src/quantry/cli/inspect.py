"""`quantry inspect`: what a checkpoint is."""

from __future__ import annotations

from typing import Any

import click

from quantry.cli.show import count_text, json_option, print_json, print_table, size_text

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry inspect model.gguf
  quantry inspect ./hf-folder --tensors
  quantry inspect unsloth/gemma-3-270m-it-GGUF/gemma-3-270m-it-Q4_K_M.gguf --json
"""


@click.command(
    "inspect", short_help="What a checkpoint is: format, layouts, bits per weight.", epilog=_EXAMPLES
)
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@json_option
def command(model: str, tensors: bool, revision: str | None, as_json: bool) -> None:
    """What MODEL is: format, architecture, layouts, bits per weight, sizes. Reads headers only.

    MODEL is a file (.gguf, .uqff, .safetensors), a folder, or a hub id owner/name.
    """
    import quantry

    found = quantry.inspect(quantry.open(model, revision))
    if as_json:
        print_json(found)
        return
    _print_summary(found)
    if tensors:
        click.echo()
        _print_tensors(found["tensors"])


def _print_summary(found: dict[str, Any]) -> None:
    click.echo(f"{found['path']}: {found['format']} ({found['evidence']})")
    click.echo(f"architecture {found['architecture'] or 'not stated'}, methods {', '.join(found['methods'])}")
    click.echo(
        f"{count_text(found['parameters'])} parameters in {len(found['tensors'])} tensors,"
        f" {size_text(found['bytes'])}, {found['bits_per_weight']:.2f} bits per weight\n"
    )
    print_table(
        ("layout", "tensors", "parameters", "size", "bits/weight"),
        (
            (
                name,
                row["tensors"],
                count_text(row["parameters"]),
                size_text(row["bytes"]),
                f"{8 * row['bytes'] / row['parameters']:.2f}" if row["parameters"] else "",
            )
            for name, row in found["layouts"].items()
        ),
        right=("tensors", "parameters", "size", "bits/weight"),
    )


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    print_table(
        ("tensor", "layout", "shape", "size", "bits/weight", "used as"),
        (
            (
                t["name"],
                t["layout"],
                "x".join(map(str, t["shape"])),
                size_text(t["bytes"]),
                f"{t['bits_per_weight']:.2f}",
                "+".join(t["ops"]),
            )
            for t in tensors
        ),
        right=("size", "bits/weight"),
    )

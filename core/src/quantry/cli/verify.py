"""`quantry verify`: whether a file is structurally sound."""

from __future__ import annotations

import click

from quantry.cli.show import json_option, print_json, print_table

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry verify model.gguf
  quantry verify out.uqff --strict
  quantry verify ./hf-folder --json

\b
Exit code 3 when a problem is found.
"""

_FOUND = 3


@click.command("verify", short_help="Check the structure of a checkpoint.", epilog=_EXAMPLES)
@click.argument("path")
@click.option(
    "--strict", is_flag=True, help="Read the data too: NaN and Inf scales, codes a layout cannot hold."
)
@json_option
@click.pass_context
def command(ctx: click.Context, path: str, strict: bool, as_json: bool) -> None:
    """Check the structure of a GGUF, UQFF or safetensors checkpoint at PATH."""
    import quantry

    problems = quantry.verify(path, strict=strict)
    if as_json:
        rows = [{"file": str(p.file), "tensor": p.tensor, "problem": p.problem} for p in problems]
        print_json({"path": path, "ok": not problems, "problems": rows})
    elif problems:
        print_table(("file", "tensor", "problem"), ((p.file, p.tensor, p.problem) for p in problems))
    else:
        click.echo(f"{path}: no problem found")
    if problems:
        ctx.exit(_FOUND)

"""`quantry plugins`: what is installed; `quantry plugins check`: the conformance kit on one plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantry.cli.show import json_option, print_json, print_table
from quantry.cli.tables import PLUGIN_KINDS, print_plugin

if TYPE_CHECKING:
    from quantry.plugins import PluginRecord

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry plugins
  quantry plugins --json
  quantry plugins check gguf
"""
_CHECK_EXAMPLES = """\b
Examples:
  quantry plugins check gguf
  quantry plugins check gguf --json

\b
Exit code 6 when a fact fails.
"""
_FAILED = 6  # as PluginError


@click.group(
    "plugins",
    invoke_without_command=True,
    short_help="What is installed; `check NAME` tests a plugin.",
    epilog=_EXAMPLES,
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Every plugin, what it gives, and for a broken one the reason. `check NAME` tests one."""
    if ctx.invoked_subcommand is not None:
        return
    from quantry.plugins import registry

    rows = [_row(record) for record in registry().plugins]
    if as_json:
        print_json({"plugins": rows})
        return
    for row in rows:
        print_plugin(row)


@command.command("check", epilog=_CHECK_EXAMPLES)
@click.argument("name")
@json_option
@click.pass_context
def check(ctx: click.Context, name: str, as_json: bool) -> None:
    """Run the conformance kit on every object that the plugin NAME gives."""
    from quantry.cli.checks import run_checks

    found = run_checks(name)
    if as_json:
        print_json({"plugins": [found]})
    else:
        columns = ("subject", "passed", "skipped", "failed")
        print_table(columns, ([s[c] for c in columns] for s in found["subjects"]), right=columns[1:])
        for problem in found["problems"]:
            click.echo(f"\n{problem}")
    if not found["ok"]:
        ctx.exit(_FAILED)


def _row(record: PluginRecord) -> dict[str, Any]:
    devices = {k.device for k in record.provides.get("kernels", ()) if k.device != "*"}
    given = {kind: record.names(kind) for kind in ("formats", "layouts", "kernels", "codecs")}
    given["quantizers"] = [q.name for q in record.provides.get("quantizers", ())]
    given["devices"] = sorted(devices.union(record.names("probes")))
    return {
        "name": record.name,
        "dist": record.dist,
        "version": record.version,
        "ok": record.ok,
        "error": record.error,
        **{kind: given[kind] for kind in PLUGIN_KINDS},
        "load_ms": round(record.load_ms, 1),
    }

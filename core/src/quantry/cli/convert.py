"""`quantry convert`: a checkpoint in a method's own on-disk format; plugins give the methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from quantry.cli.group import dressed, from_plugins
from quantry.cli.plugin_commands import METHODS
from quantry.cli.show import parse_size, print_json, print_table, size_text
from quantry.errors import PluginError, nearest

__all__ = ["Terminal", "command"]

# which dist gives a method: what to install, as in quantry.hints
_DISTS = {
    "gguf": "quantry-gguf", "gptq": "quantry-gptq", "awq": "quantry-awq", "bnb": "quantry-bnb",
    "hqq": "quantry-hqq", "fp8": "quantry-fp8", "mlx": "quantry-afq-metal",
}  # fmt: skip


class Terminal:
    """What every method shares: `@click.pass_obj` gives it to the command."""

    parse_size = staticmethod(parse_size)

    def show(self, document: Mapping[str, Any], as_json: bool) -> None:
        """The result. Keys: output, tensors, bytes, bits_per_weight, seconds; optional: peak_rss_bytes,
        types (name → tensors), fallbacks (tensor, type, reason each), dry_run."""
        if as_json:
            print_json(document)
            return
        if document.get("types"):
            print_table(("type", "tensors"), document["types"].items(), right=("tensors",))
        kinds: dict[tuple[str, str], list[str]] = {}
        for fallback in document.get("fallbacks", ()):
            kinds.setdefault((fallback["type"], fallback["reason"]), []).append(fallback["tensor"])
        for (kind, reason), (first, *more) in kinds.items():
            who = f"{first} and {len(more)} more are" if more else f"{first} is"
            click.echo(f"{who} {kind}: {reason}", err=True)
        what = "would be written" if document.get("dry_run") else "written"
        peak = document.get("peak_rss_bytes")
        click.echo(
            f"\n{size_text(document['bytes'])} {what} to {document['output']} in {document['seconds']:.1f} s,"
            f" {document['bits_per_weight']:.2f} bits a weight"
            + (f", peak memory {size_text(peak)}" if peak else "")
        )


class Methods(click.Group):
    """The methods of installed plugins; one that is not installed says what to install."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Sorted."""
        return sorted(name.split()[1] for name in from_plugins(ctx) if name.startswith(f"{METHODS} "))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The method `name`, None where no plugin gives it."""
        command = from_plugins(ctx).get(f"{METHODS} {name}")
        return None if command is None else dressed(command, f"{METHODS}_{name}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; an unknown method names the dist that gives it, or the nearest method."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            if name in _DISTS:
                raise PluginError(
                    f"no installed plugin converts to {name}", hint=f"pip install {_DISTS[name]}"
                )
            raise click.UsageError(f"no method {name!r}. {nearest(name, {*known, *_DISTS})}", ctx)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What other plugins would add."""
        missing = sorted(_DISTS.keys() - set(self.list_commands(ctx)))
        if missing:
            with formatter.section("Not installed"):
                formatter.write_dl([(name, f"pip install {_DISTS[name]}") for name in missing])


@click.group(METHODS, cls=Methods, short_help="A checkpoint in another method's format.")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Write a checkpoint in a method's own on-disk format: `quantry convert METHOD MODEL -o OUT`."""
    ctx.obj = Terminal()

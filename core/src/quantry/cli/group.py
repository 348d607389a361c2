"""The command group: core commands imported by name, plugin commands added each in its own try."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import click

from quantry.cli.failure import Settings, guarded
from quantry.errors import nearest

__all__ = ["Cli", "dressed", "from_plugins"]

# command → the module whose `command` it is; alphabetical, as help lists them
_CORE = {
    name: f"quantry.cli.{name}"
    for name in ("bench", "convert", "doctor", "explain", "inspect", "plugins", "quantize", "verify")
}
_META = "quantry.plugin_commands"
_RUN = "quantry.cli.missing_run"  # stands in while no runtime plugin adds `run`

# options that mean the same in every command, so one variable sets them all
_SHARED = ("device", "numerics", "jobs", "json")


class Cli(click.Group):
    """Errors as one message and an exit code; `--debug` and QUANTRY_* variables on every command."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As click's, but every error ends as `error: …` on stderr with the exit code of its class."""
        run = functools.partial(super().main, *args, standalone_mode=False, **extra)
        return guarded(run) if standalone_mode else run()

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core and plugin commands, sorted."""
        return sorted({*_CORE, "run", *(name for name in from_plugins(ctx) if " " not in name)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command `name`; plugins are loaded only where the core has none of that name."""
        command = _load(_CORE[name]) if name in _CORE else from_plugins(ctx).get(name)
        if command is None and name == "run":
            command = _load(_RUN)
        return None if command is None else dressed(command, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; an unknown command proposes the nearest."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(
                f"no command {args[0]!r}. {nearest(args[0], self.list_commands(ctx))}", ctx
            )
        return super().resolve_command(ctx, args)


def from_plugins(ctx: click.Context) -> dict[str, click.Command]:
    """Commands of plugins, methods as `convert NAME`, asked once per command line."""
    if _META not in ctx.meta:
        from quantry.cli.plugin_commands import plugin_commands

        ctx.meta[_META] = plugin_commands(reserved=tuple(_CORE))
    found: dict[str, click.Command] = ctx.meta[_META]
    return found


def _load(module: str) -> click.Command:
    command: click.Command = importlib.import_module(module).command
    return command


def dressed(command: click.Command, name: str) -> click.Command:
    """`command` with `--debug`, and with variables QUANTRY_<OPTION> for the options that all share."""
    if any(p.name == "debug" for p in command.params):
        return command
    if isinstance(command, click.Group):
        for sub, inner in command.commands.items():
            dressed(inner, f"{name}_{sub}")
    for p in command.params:
        if isinstance(p, click.Option) and p.envvar is None and p.name in _SHARED:
            p.envvar = [f"QUANTRY_{name.upper()}_{p.name.upper()}", f"QUANTRY_{p.name.upper()}"]
    command.params.append(
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            envvar="QUANTRY_DEBUG",
            callback=_set_debug,
            help="Show the traceback of an error.",
        )
    )
    return command


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        Settings.debug = True

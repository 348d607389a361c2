"""Commands that plugins add, collected apart from the core's so that none can replace one."""

from __future__ import annotations

import click

from quantry.cli.failure import note
from quantry.plugins import PluginRecord, registry

__all__ = ["METHODS", "plugin_commands"]

METHODS = "convert"  # the group that plugins find in the one they are given, for their method of converting


def plugin_commands(reserved: tuple[str, ...]) -> dict[str, click.Command]:
    """Name → command, `convert NAME` → method.

    A plugin whose hook raises, or whose name is taken, costs a note and nothing else.
    """
    taken: dict[str, str] = dict.fromkeys(reserved, "quantry")
    found: dict[str, click.Command] = {}
    for record in registry().plugins:
        for name, command in _commands_of(record).items():
            if name in taken:
                note(
                    f"plugin {record.name!r} ({record.dist}) adds {name!r}, which {taken[name]} has: ignored"
                )
                continue
            taken[name] = record.dist
            found[name] = command
    return found


def _commands_of(record: PluginRecord) -> dict[str, click.Command]:
    if record.commands is None:
        return {}
    methods = click.Group(METHODS)
    shelf = click.Group(commands={METHODS: methods})
    try:
        record.commands(shelf)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # as broken as an import that exits
        note(f"commands of plugin {record.name!r} ({record.dist}) are missing: {type(e).__name__}: {e}")
        return {}
    found = {name: command for name, command in shelf.commands.items() if command is not methods}
    return found | {f"{METHODS} {name}": method for name, method in methods.commands.items()}

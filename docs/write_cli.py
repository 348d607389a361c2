"""Write docs/cli.md from the `--help` of every command.

python docs/write_cli.py            print the page
python docs/write_cli.py --write    write it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Made from `--help` by `python docs/write_cli.py --write`; a test compares.
"""


def commands(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """(full name, help text) of a command and of everything below it."""
    settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            inner = command.get_command(context, sub)
            if inner is not None:
                yield from commands(inner, sub, context)


def page() -> str:
    """The whole page."""
    from quantry.cli import cli

    parts = [f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in commands(cli, "quantry")]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())

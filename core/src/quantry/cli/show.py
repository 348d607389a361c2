"""How results look: JSON, tables, sizes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "count_text", "json_option", "parse_size", "print_json", "print_table", "size_text", "stdout",
]  # fmt: skip

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kKmMgGtT])(i)?)?[bB]?")
_PIPE_WIDTH = 10_000  # nothing is cut or wrapped where no terminal sets a width

json_option = click.option(
    "--json", "as_json", is_flag=True, envvar="QUANTRY_JSON", help="Print one JSON document."
)


def print_json(document: Any) -> None:
    """The one document of a `--json` command."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def stdout() -> Console:
    """A console that prints text as it is; colour on a terminal without NO_COLOR."""
    from rich.console import Console

    plain = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if not plain.is_terminal:
        plain.width = _PIPE_WIDTH
    return plain


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    title: str | None = None,
) -> None:
    """Columns of text under bold headings; those named in `right` are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    stdout().print(table)


def size_text(nbytes: float) -> str:
    """Bytes for people, powers of 1000.

    >>> size_text(253_116_000)
    '253.1 MB'
    """
    return _scaled(nbytes, ("B", "kB", "MB", "GB", "TB"))


def count_text(n: float) -> str:
    """A count for people.

    >>> count_text(268_098_176)
    '268.1 M'
    """
    return _scaled(n, ("", "k", "M", "G", "T")).rstrip()


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    while value >= 1000 and power < len(units) - 1:
        value /= 1000
        power += 1
    return f"{value:.0f} {units[0]}" if power == 0 else f"{value:.1f} {units[power]}"


def parse_size(text: str) -> int:
    """Bytes of "800MB", "2 GB", "1.5G", "512MiB" or a plain number; powers of 1000, with an i of 1024.

    Raises UsageError for anything else.
    """
    from quantry.errors import UsageError

    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size", hint="Write it as 800MB or 2GB.")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)

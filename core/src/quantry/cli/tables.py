"""What commands print for people, where it is more than one table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from quantry.cli.show import print_table

__all__ = ["PLUGIN_KINDS", "print_explanation", "print_plugin"]

PLUGIN_KINDS = ("formats", "layouts", "kernels", "quantizers", "codecs", "devices")


def print_plugin(row: dict[str, Any]) -> None:
    """A line for the plugin, broken or not, and one for each kind of object it gives."""
    state = "" if row["ok"] else f"  BROKEN: {row['error']}"
    click.echo(f"{row['name']}  {row['dist']} {row['version']}  {row['load_ms']:.0f} ms{state}")
    for kind in PLUGIN_KINDS:
        if row[kind]:
            click.echo(f"  {kind:<11} {', '.join(row[kind])}")


def print_explanation(found: dict[str, Any], each: bool) -> None:
    """The candidates of each weight; unless `each`, equal weights are shown once."""
    click.echo(
        f"{found['device']} ({found['device_name']}), batch {found['batch']}, {found['dtype']} activations,"
        f" numerics {found['numerics']}; * is chosen"
    )
    for group in _groups(found["tensors"], each):
        _print_group(group)


def _groups(tensors: list[dict[str, Any]], each: bool) -> Iterable[list[dict[str, Any]]]:
    """Tensors that have one answer: equal in layout, shape and use."""
    groups: dict[object, list[dict[str, Any]]] = {}
    for t in tensors:
        key = t["name"] if each else (t["layout"], tuple(t["shape"]), tuple(t["ops"]))
        groups.setdefault(key, []).append(t)
    return groups.values()


def _print_group(group: list[dict[str, Any]]) -> None:
    first = group[0]
    name = first["name"] if len(group) == 1 else f"{first['name']} and {len(group) - 1} like it"
    kept = "" if first["storage"] in (None, first["layout"]) else f", kept as {first['storage']}"
    click.echo(f"\n{name}: {first['layout']} {'x'.join(map(str, first['shape']))}{kept}")
    if not first["candidates"]:
        click.echo(f"  {first['error']}")
        return
    print_table(
        ("", "kernel", "op", "priority", "µs", "why"),
        (_candidate(c) for c in _distinct(first["candidates"])),
        right=("priority", "µs"),
    )


def _candidate(c: dict[str, Any]) -> tuple[object, ...]:
    time_us = None if c["time_us"] is None else f"{c['time_us']:.1f}"
    mark, why = ("*", "chosen") if c["chosen"] else ("", c["reason"])
    return mark, c["kernel"], c.get("op"), c["priority"], time_us, why


def _distinct(candidates: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """One row per kernel, op and reason, whatever the storage; chosen first, then by priority."""
    rows = {(c["kernel"], c.get("op"), c["reason"]): c for c in candidates}
    return sorted(
        rows.values(), key=lambda c: (str(c.get("op")), not c["chosen"], not c["ok"], -c["priority"])
    )

"""`quantry doctor`: every plugin exercised in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import click

from quantry.cli.progress import progress
from quantry.cli.show import json_option, print_json, print_table

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry doctor
  quantry doctor gguf --json

\b
Exit code 6 when a plugin has a problem.
"""

_FAILED = 6  # as PluginError


@click.command("doctor", short_help="Exercise every plugin in a process of its own.", epilog=_EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option("--timeout", default=300, show_default=True, help="Seconds allowed to each plugin.")
@json_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], timeout: int, as_json: bool) -> None:
    """Import each plugin, call its hooks and each of its kernels once, in a process of its own.

    A plugin that crashes, hangs, imports torch or takes over 250 ms to import is named; the others are still
    examined.
    """
    found = []
    with progress("doctor") as tick:
        wanted = _installed(names)
        for done, (name, dist) in enumerate(wanted):
            tick(done, len(wanted), name)
            found.append(_examined(name, dist, timeout))
    if as_json:
        print_json({"plugins": found})
    else:
        lines = [(p["name"], p["dist"], "ok", "") for p in found if p["ok"]]
        lines += [(p["name"], p["dist"], "PROBLEM", problem) for p in found for problem in p["problems"]]
        lines += [(p["name"], p["dist"], "note", text) for p in found for text in p["notes"]]
        print_table(("plugin", "dist", "", "what"), sorted(lines))
    if not all(p["ok"] for p in found):
        ctx.exit(_FAILED)


def _installed(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, dist) of the entry points, none of them imported here."""
    from quantry.errors import UsageError, nearest
    from quantry.plugins import _entry_points

    known = [("core", "quantry"), *sorted((record.name, record.dist) for _, record in _entry_points())]
    for name in names:
        if name not in {k for k, _ in known}:
            raise UsageError(f"no installed plugin {name!r}", hint=nearest(name, [k for k, _ in known]))
    return [pair for pair in known if not names or pair[0] in names]


def _examined(name: str, dist: str, timeout: int) -> dict[str, Any]:
    args = [sys.executable, "-m", "quantry.cli.exercise", name, dist]
    env = {**os.environ, "QUANTRY_PLUGINS": name}  # others are not loaded: they may crash
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=timeout, check=False, env=env)
        output, ending = done.stdout, f"ended with exit code {done.returncode}"
        if done.returncode < 0:
            ending = f"crashed with signal {-done.returncode}"
    except subprocess.TimeoutExpired as e:
        output, ending = _text(e.stdout), f"did not end within {timeout} s"
    events = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    problems = [e["problem"] for e in events if "problem" in e]
    if not any("end" in e for e in events):
        step = next((e["step"] for e in reversed(events) if "step" in e), "start")
        problems.append(f"{ending} during: {step}")
    notes = [e["note"] for e in events if "note" in e]
    return {"name": name, "dist": dist, "ok": not problems, "problems": problems, "notes": notes}


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""

"""How a command ends: its exit code, and the one message that an error becomes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import click

from quantry.errors import QuantryError

__all__ = ["Settings", "guarded", "note"]

_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


class Settings:
    """What holds for the whole process."""

    debug: ClassVar[bool] = False


def note(message: str) -> None:
    """Something worth knowing that stops nothing, on stderr."""
    click.echo(f"note: {message}", err=True)


def guarded(run: Callable[[], Any]) -> None:
    """Call `run` and exit with its code; whatever it raises becomes one message on stderr."""
    Settings.debug = bool(os.environ.get("QUANTRY_DEBUG", "").strip("0"))
    code = 0
    try:
        result = run()
        code = result if type(result) is int else 0
        sys.stdout.flush()
    except QuantryError as e:
        code = _report(str(e), e.exit_code)
    except click.UsageError as e:
        where = e.ctx.command_path if e.ctx is not None else "quantry"
        code = _report(f"{e.format_message()}\n`{where} --help` shows the usage.", e.exit_code)
    except click.ClickException as e:
        code = _report(e.format_message(), e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        code = 1
    except Exception as e:
        code = _report(
            f"{type(e).__name__}: {e}\nThis is a bug in quantry or in a plugin; --debug shows where.", 1
        )
    sys.exit(code)


def _report(message: str, code: int) -> int:
    if Settings.debug:
        traceback.print_exc()
    label = "error: " if os.environ.get("NO_COLOR") else click.style("error: ", fg="red", bold=True)
    click.echo(label + message, err=True)  # click drops the colour where stderr is no terminal
    return code


def _discard_stdout() -> None:
    """The reader is gone: let the flush at exit write to nowhere instead of complaining."""
    with contextlib.suppress(OSError):  # not a real file: nothing will be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

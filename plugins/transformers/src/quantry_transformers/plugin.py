"""A runtime and the commands `quantry run` and `quantry imatrix`. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantry import hookimpl

if TYPE_CHECKING:
    import click

    from quantry import ModulePacker, Runtime


@hookimpl
def quantry_runtimes() -> Iterable[Runtime]:
    """The transformers runtime."""
    from quantry_transformers.runtime import TransformersRuntime

    return [TransformersRuntime()]


@hookimpl
def quantry_module_packers() -> Iterable[ModulePacker]:
    """Expert stacks."""
    from quantry_transformers.experts import ExpertsPacker

    return [ExpertsPacker()]


@hookimpl
def quantry_commands(cli: click.Group) -> None:
    """`quantry run` and `quantry imatrix`."""
    from quantry_transformers.command import run
    from quantry_transformers.imatrix_command import imatrix

    cli.add_command(run)
    cli.add_command(imatrix)

"""What `quantry run` says while no installed plugin can build a model."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Generate text (needs quantry-transformers).",
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(args: tuple[str, ...]) -> None:
    """Generate text with packed weights; a runtime plugin gives this command: quantry-transformers."""
    from quantry.errors import PluginError
    from quantry.plugins import registry

    failed = [f"Plugin {p.name!r} ({p.dist}) is not in use: {p.error}" for p in registry().failures]
    raise PluginError(
        "no installed plugin gives `run`", hint="\n".join(["pip install quantry-transformers", *failed])
    )

"""The `quantry` command line: `main` is what the installed script calls. One file a command."""

from __future__ import annotations

import click

from quantry import __version__
from quantry.cli.group import Cli

__all__ = ["cli", "main"]

_EXAMPLES = """\b
Examples:
  quantry inspect model.gguf                        what it is, bits per weight, sizes
  quantry explain model.gguf --batch 1              which kernel runs each weight, and why
  quantry run model.gguf -p "The capital of France is"
  quantry quantize ./hf-folder --isq q4k -o out.uqff
  quantry plugins                                   what is installed

\b
Data goes to stdout, progress and errors to stderr. --json gives one JSON document.
Options can be set by variables: QUANTRY_DEVICE=cuda, QUANTRY_EXPLAIN_BATCH=16, NO_COLOR=1.
Exit codes: 0 done, 2 wrong usage, 3 bad file or value, 4 no kernel, 5 kernel failed, 6 plugin broken.
"""


@click.group(
    cls=Cli,
    epilog=_EXAMPLES,
    context_settings={
        "auto_envvar_prefix": "QUANTRY",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
    },
)
@click.version_option(__version__, prog_name="quantry", allow_from_autoenv=False)
def cli() -> None:
    """Quantized weights in PyTorch: look into files, see what runs where and why, run, quantize, verify."""


def main() -> None:
    """Run the command line on `sys.argv` and exit."""
    cli.main(prog_name="quantry")

"""`quantry quantize`: a dense checkpoint to UQFF, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantry.cli.isq_tables import print_isq
from quantry.cli.progress import progress
from quantry.cli.show import json_option, parse_size, print_json

if TYPE_CHECKING:
    from quantry.isq_plan import Organization
    from quantry.isq_run import NanPolicy

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry quantize ./hf-folder --isq q4k -o out.uqff
  quantry quantize ./hf-folder --isq q4k,q8_0 -o folder
  quantry quantize ./hf-folder --isq 4 -o out.uqff --dry-run
  quantry quantize /shared/hf-folder --isq q4k -o /shared/out.uqff --ray head:6379
  quantry quantize model.gguf --isq keep -o out.uqff      as UQFF, every weight in the type it has
"""


@click.command("quantize", short_help="A dense checkpoint to UQFF, streamed.", epilog=_EXAMPLES)
@click.argument("model")
@click.argument("more", nargs=-1, metavar="")
@click.option("-o", "--out", required=True, help="x.uqff for one type, a folder for several.")
@click.option(
    "--isq",
    required=True,
    multiple=True,
    help="ISQ types (q4k, q8_0, …) or widths (4), several by commas; keep: as they are.",
)
@click.option("--imatrix", help="Importance per column, of `quantry imatrix` or llama.cpp.")
@click.option("--topology", help="YAML of layers and patterns that get a type of their own.")
@click.option("--organization", type=click.Choice(["default", "moqe"]), default="default", show_default=True)
@click.option("--include", multiple=True, help="Only tensors that this regular expression matches.")
@click.option("--exclude", multiple=True, help="No tensor that this regular expression matches.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Workers; one per core by default. The bytes do not depend on it.",
)
@click.option("--max-memory", metavar="SIZE", help="Bound of a process's memory: 800MB, 2GB.")
@click.option(
    "--nan-policy", type=click.Choice(["refuse", "zero"]), default="refuse", show_default=True,
    help="NaN and Inf among the weights: refuse, naming the first, or write 0 and count them.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where a width such as 4 is to run later.")
@click.option(
    "--requantize", is_flag=True, help="Take weights that are packed already, losing precision twice."
)
@click.option(
    "--portable", is_flag=False, flag_value="exact", metavar="[TYPE]",
    help="Only what mistral.rs reads: rewritten exactly, else quantized anew to TYPE.",
)  # fmt: skip
@click.option(
    "--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS]",
    help="A Ray cluster does it, which sees the same files: HOST:PORT, RAY_ADDRESS, or one made for the run.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Plan only: exact sizes and what falls back, nothing written.")
@json_option
def command(
    model: str, more: tuple[str, ...], out: str, isq: tuple[str, ...], imatrix: str | None,
    topology: str | None, organization: Organization, include: tuple[str, ...], exclude: tuple[str, ...],
    jobs: int | None, max_memory: str | None, nan_policy: NanPolicy, device: str, requantize: bool,
    portable: str | None, ray: str | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL to UQFF, tensor block by tensor block: memory does not grow with the model.

    An interrupted run leaves the old output or none; the same command goes on where it was.
    """
    from quantry.importance_files import read_importance
    from quantry.isq import quantize_checkpoint
    from quantry.isq_plan import Selection

    types = [name for text in (*isq, *more) for name in text.split(",") if name]
    selection = Selection.of(include, exclude, organization, topology)
    importance = None if imatrix is None else read_importance(imatrix).weights
    with progress("quantize", sizes=True) as tick:
        done = quantize_checkpoint(
            model, out, types, importance=importance, selection=selection, jobs=jobs,
            max_memory=None if max_memory is None else parse_size(max_memory), nan_policy=nan_policy,
            device=device, requantize=requantize, portable=portable, dry_run=dry_run, progress=tick,
            executor=None if ray is None else "ray", address=ray,
        )  # fmt: skip
    for plan in done.plans if importance is not None else ():
        if not any(quantizer.takes_importance for quantizer in plan.quantizers):
            click.echo(
                f"note: importance changes nothing for {plan.quant}, whose scales it has no say in", err=True
            )
    if as_json:
        print_json(done.as_json())
    else:
        print_isq(done, dry_run)

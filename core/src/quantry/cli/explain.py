"""`quantry explain`: which kernel runs each weight, and why each other one does not."""

from __future__ import annotations

from typing import Literal

import click

from quantry.cli.isq_tables import show_width
from quantry.cli.show import json_option, print_json
from quantry.cli.tables import print_explanation

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry explain model.gguf
  quantry explain model.gguf --tensor blk.0.ffn_down.weight --batch 64
  quantry explain model.gguf --device cuda --numerics fast --json
  quantry explain model.gguf --forget --measure --seconds 20
  quantry explain --isq 4                  which type 4 bits stand for here, and why

\b
Times are kept for each device in the user's cache folder, or in QUANTRY_CACHE_DIR. QUANTRY_MEASURE says for
every command how kernels are chosen: off, by priority; cached (default), by known times; on, by times
measured where a model is prepared.
"""


_MEASURE: dict[bool | None, Literal["on", "off"] | None] = {True: "on", False: "off", None: None}


@click.command("explain", short_help="Which kernel runs each weight, and why.", epilog=_EXAMPLES)
@click.argument("model", required=False)
@click.option(
    "--isq",
    type=click.IntRange(2, 8),
    metavar="WIDTH",
    help="Instead of a model: the ISQ type that a width of 2 to 8 bits stands for on the device.",
)
@click.option("--tensor", help="Only this tensor.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps, …")
@click.option(
    "--batch", type=click.IntRange(min=0), default=1, show_default=True, help="Rows of the activations."
)
@click.option("--dtype", default="f32", show_default=True, help="Type of the activations: f32, bf16 or f16.")
@click.option("--numerics", help="exact, strict (default) or fast.")
@click.option("--reference", is_flag=True, help="Let the slow tile-wise kernels take part.")
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Time kernels that were never timed first; or ignore times that are known.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True, help="At most, for --measure."
)
@click.option("--forget", is_flag=True, help="Drop the times of this device first.")
@click.option("--all", "each", is_flag=True, help="One row per tensor instead of one per distinct weight.")
@json_option
def command(
    model: str | None, isq: int | None, tensor: str | None, device: str, batch: int, dtype: str,
    numerics: str | None, reference: bool, measure: bool | None, seconds: float, forget: bool, each: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Which kernel runs each weight of MODEL on a device, and the reason of every candidate that does not.

    Or, with --isq WIDTH, which type a width stands for.

    Weights of equal layout, shape and use are shown once, with their number; --all shows each.
    """
    import quantry
    from quantry.policy import check_numerics

    if forget:
        quantry.forget_times(device)
    mode = None if numerics is None else check_numerics(numerics)
    if (model is None) == (isq is None):
        raise click.UsageError("name a MODEL, or a width with --isq")
    if isq is not None:
        with quantry.use(numerics=mode, measure=_MEASURE[measure]):
            show_width(isq, device, measure is not False, as_json)
        return
    assert model is not None  # checked above
    with quantry.use(reference="allow" if reference else None, measure=_MEASURE[measure]):
        found = quantry.explain(
            model, device, batch, tensor=tensor, dtype=dtype, numerics=mode, seconds=seconds
        )
    left = found["measured"]["left"] if found["measured"] else 0
    if left:
        click.echo(f"{left} problems were not timed within {seconds:g} s: the same command goes on", err=True)
    if as_json:
        print_json(found)
        return
    print_explanation(found, each)

"""`quantry explain`: which kernel runs each weight, and why each other one does not."""

from __future__ import annotations

import click

from quantry.cli.show import json_option, print_json
from quantry.cli.tables import print_explanation

__all__ = ["command"]

_EXAMPLES = """\b
Examples:
  quantry explain model.gguf
  quantry explain model.gguf --tensor blk.0.ffn_down.weight --batch 64
  quantry explain model.gguf --device cuda --numerics fast --json
"""


@click.command("explain", short_help="Which kernel runs each weight, and why.", epilog=_EXAMPLES)
@click.argument("model")
@click.option("--tensor", help="Only this tensor.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps, …")
@click.option(
    "--batch", type=click.IntRange(min=0), default=1, show_default=True, help="Rows of the activations."
)
@click.option("--dtype", default="f32", show_default=True, help="Type of the activations: f32, bf16 or f16.")
@click.option("--numerics", help="exact, strict (default) or fast.")
@click.option("--reference", is_flag=True, help="Let the slow tile-wise kernels take part.")
@click.option("--all", "each", is_flag=True, help="One row per tensor instead of one per distinct weight.")
@json_option
def command(
    model: str,
    tensor: str | None,
    device: str,
    batch: int,
    dtype: str,
    numerics: str | None,
    reference: bool,
    each: bool,
    as_json: bool,
) -> None:
    """Which kernel runs each weight of MODEL on a device, and the reason of every candidate that does not.

    Weights of equal layout, shape and use are shown once, with their number; --all shows each.
    """
    import quantry
    from quantry.policy import check_numerics

    mode = None if numerics is None else check_numerics(numerics)
    with quantry.use(reference="allow" if reference else None):
        found = quantry.explain(model, device, batch, tensor=tensor, dtype=dtype, numerics=mode)
    if as_json:
        print_json(found)
        return
    print_explanation(found, each)

"""`quantry run`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

__all__ = ["run"]

_EPILOG = """\b
Examples:
  quantry run model.gguf -p "The capital of France is" -n 32
  quantry run ./uqff-folder -i --temperature 0.7 --top-p 0.9 --seed 1
  quantry run ./hf-folder --isq q4k -p "Hello" --json
  quantry run model.gguf --adapter lora.gguf --adapter ./peft-folder=0.5 -p "Hello"
"""


@click.command(epilog=_EPILOG, short_help="Generate text with packed weights.")
@click.argument("model")
@click.option("-p", "--prompt", metavar="TEXT", help="Continue or answer TEXT.")
@click.option("-i", "--interactive", is_flag=True, help="Hold a conversation; end it with /exit or Ctrl-D.")
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="At most this many new tokens.",
)
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token."
)
@click.option("--top-k", type=int, default=0, show_default=True, help="Choose among the K likeliest; 0: all.")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Choose among the likeliest that make up P."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal text.")
@click.option("--device", default="cpu", show_default=True, metavar="D")
@click.option("--isq", metavar="TYPE", help="Quantize dense weights to TYPE while loading.")
@click.option(
    "--adapter",
    multiple=True,
    metavar="PATH[=SCALE]",
    help="Add a LoRA: a GGUF file or a PEFT folder. May be repeated.",
)
@click.option(
    "--numerics", type=click.Choice(["exact", "strict", "fast"]), default="strict", show_default=True
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the model's steps first; needs a C++ compiler."
)
@click.option("--raw", is_flag=True, help="Do not apply the model's chat template.")
@click.option("--reference", is_flag=True, help="Permit the slow tile-wise kernels.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model folder brings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def run(model: str, prompt: str | None, interactive: bool, as_json: bool, **options: Any) -> None:
    """Generate text with MODEL: a file (.gguf, .uqff, .safetensors), a folder, or a hub id.

    Weights stay packed as they are stored. The chat template is applied where the model has one.
    """
    if (prompt is None) != interactive or (interactive and as_json):
        raise click.UsageError("give either -p TEXT, with or without --json, or -i")
    count, raw = options.pop("tokens"), options.pop("raw")
    from quantry_transformers.generate import Sampling
    from quantry_transformers.session import open_session

    sampling = Sampling(*(options.pop(name) for name in ("temperature", "top_k", "top_p", "seed")))
    session = open_session(model, **options)
    if prompt is None:
        session.chat(count, sampling, raw, _read_line)
        return
    ids = session.conversation(raw).ask(prompt)
    show = (lambda piece: None) if as_json else _show
    report = session.report(session.answer(ids, count, sampling, show))
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        click.echo()
        _summary(report)


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _read_line() -> str | None:
    if sys.stdin.isatty():
        import readline  # noqa: F401  arrow keys and history in `input`
    try:
        click.echo("> ", nl=False, err=True)
        line = input()
    except EOFError:
        return None
    return None if line.strip() in ("/exit", "/quit") else line


def _summary(report: dict[str, Any]) -> None:
    kernels = ", ".join(f"{name} ×{count}" for name, count in report["kernels"].items())
    for a in report["adapters"]:
        click.echo(
            f"adapter {a['path']}: rank {a['rank']}, {a['weights']} weights, {a['bytes'] / 1e6:.1f} MB,"
            f" scale {a['scale']:g}",
            err=True,
        )
    click.echo(
        f"{len(report['tokens'])} tokens, {report['decode_tok_s']:.1f} tok/s"
        f" ({report['prefill_tok_s']:.0f} prompt);"
        f" loaded in {report['load_s']:.1f} s; {report['weights_bytes'] / 1e6:.0f} MB of weights,"
        f" {report['peak_rss_bytes'] / 1e6:.0f} MB peak; numerics {report['numerics']}\nkernels: {kernels}",
        err=True,
    )

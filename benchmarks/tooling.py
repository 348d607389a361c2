"""What importance, GGUF output and adapters cost; writes results/tooling.json and .md.

    python benchmarks/tooling.py

* `quantry imatrix` of Gemma-3-270M: tokens a second of `collect_importance`, weights read from the file
  layer by layer, by the prefill speed of the same model, loaded, over the same chunks, logits of the last
  token only;
* `quantry convert gguf`: seconds of `convert_gguf` by those of the encoders alone for the same weights and
  types in memory, on as many threads; from a GGUF file of 2 GB of bfloat16, and from the dense folder of
  Gemma, whose vocabulary of 262,144 tokens costs more than its weights;
* a GGUF LoRA of rank 16 on every linear layer of every block of Gemma: decoded tokens a second with it by
  without.

Each pair runs interleaved, best of `--rounds`; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from foundation import gemma
from quality import dense_gemma

import quantry
from quantry.bench.machine import describe
from quantry_gguf.convert import convert_gguf
from quantry_gguf.mixes import file_type
from quantry_gguf.tensor_types import TypeOptions
from quantry_transformers.generate import Generation
from quantry_transformers.importance import collect_importance, default_text

RESULTS = Path(__file__).parent / "results"
RANK = 16
CHUNKS, CHUNK_TOKENS = 4, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        document = {
            "machine": describe(quantry.registry().device("cpu"), torch.get_num_threads(), ("transformers",)),
            "imatrix": imatrix(rounds),
            "convert": conversions(Path(scratch), rounds),
            "lora": lora(Path(scratch), rounds),
        }
    (RESULTS / "tooling.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "tooling.md").write_text(page(document))
    print(page(document))


def best(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Least seconds of each, one after the other in every round."""
    least = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - start)
    return least


def imatrix(rounds: int) -> dict[str, Any]:
    rows = []
    for path in (dense_gemma(), gemma()):
        model, tokenizer = quantry.load_model(path)
        ids = torch.tensor(tokenizer(default_text(), add_special_tokens=False).input_ids)
        chunks = ids[: CHUNKS * CHUNK_TOKENS].view(CHUNKS, 1, CHUNK_TOKENS)

        def prefill(model: Any = model, chunks: torch.Tensor = chunks) -> None:
            with torch.inference_mode():
                for chunk in chunks:
                    model(chunk, use_cache=False, logits_to_keep=1)

        def collect(path: Path = path) -> None:
            collect_importance(path, chunks=CHUNKS, chunk_tokens=CHUNK_TOKENS)

        ours, own = best(rounds, collect, prefill)
        tokens = CHUNKS * CHUNK_TOKENS
        rows.append(
            {"model": path.name, "tok_s": tokens / ours, "prefill_tok_s": tokens / own, "ratio": own / ours}
        )
    return {"chunks": CHUNKS, "chunk_tokens": CHUNK_TOKENS, "rows": rows}


def conversions(scratch: Path, rounds: int) -> list[dict[str, Any]]:
    folder, large = dense_gemma(), large_gguf(scratch / "large.gguf")
    kinds = ("Q4_K_M", "IQ4_XS", "Q8_0")
    return [converted(large, scratch, k, rounds) for k in kinds] + [
        converted(folder, scratch, kinds[0], rounds)
    ]


def large_gguf(path: Path) -> Path:
    """A llama of 12 layers, 2 GB of random bfloat16."""
    writer = gguf.GGUFWriter(path, "llama")
    layers, hidden, inner, heads = 12, 2560, 6912, 20
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    shapes = {"attn_q": (hidden, hidden), "attn_k": (hidden, hidden), "attn_v": (hidden, hidden)}
    shapes |= {"attn_output": (hidden, hidden), "ffn_down": (hidden, inner)}
    shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden)}
    made = torch.Generator().manual_seed(0)
    for layer in range(layers):
        for name, shape in shapes.items():
            weight = (torch.randn(shape, generator=made) * 0.02).bfloat16().view(torch.uint8).numpy()
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(model: Path, scratch: Path, kind: str, rounds: int) -> dict[str, Any]:
    """Seconds of a conversion, and of encoding the same weights from memory."""
    out, options = scratch / "x.gguf", TypeOptions(file_type(kind))
    convert_gguf(model, out, options)
    made, source = quantry.open(out), quantry.open(model)
    names = quantry.model_names(source, "gguf") if source.format.name != "gguf" else {}
    packed = [e for e in made.entries() if e.layout.family == "ggml"]
    work = [
        (source[names.get(e.name, e.name)].buffers["weight"].clone(), str(e.layout).partition(":")[2])
        for e in packed
    ]
    pieces = [
        (part, to) for weight, to in work for part in weight.split(max(1, (2 << 20) // weight.shape[1]))
    ]

    def encode() -> None:
        jobs = torch.get_num_threads()
        quantry.run_bounded(pieces, lambda p: quantry.quantize(*p), lambda _: 1, budget=1 << 30, jobs=jobs)

    ours, alone = best(rounds, lambda: convert_gguf(model, out, options), encode)
    size = sum(weight.nbytes for weight, _ in work)
    return {
        "model": model.name, "source_bytes": size, "type": kind, "seconds": ours, "encoders_s": alone,
        "share": alone / ours, "bytes": out.stat().st_size,
    }  # fmt: skip


def lora(scratch: Path, rounds: int) -> dict[str, Any]:
    adapter = scratch / "lora.gguf"
    count = write_lora(adapter)
    model, tokenizer = quantry.load_model(gemma())
    adapted, _ = quantry.load_model(gemma(), adapter=adapter)
    ids = tokenizer("The capital of France is").input_ids
    speeds = [0.0, 0.0]
    for _ in range(rounds):
        for i, m in enumerate((model, adapted)):
            generation = Generation(m, ids, 128, stop=[])
            list(generation)
            speeds[i] = max(speeds[i], generation.decode_tok_s)
    return {
        "rank": RANK, "weights": count, "without_tok_s": speeds[0], "with_tok_s": speeds[1],
        "cost": 1 - speeds[1] / speeds[0],
    }  # fmt: skip


def write_lora(path: Path) -> int:
    """A random adapter on every matrix of every block; how many there are."""
    dice = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    matrices = [e for e in quantry.open(gemma()).entries() if e.name.startswith("blk.") and len(e.shape) == 2]
    for entry in matrices:
        rows, columns = entry.shape
        a = dice.standard_normal((RANK, columns)) / columns**0.5
        writer.add_tensor(f"{entry.name}.lora_a", a.astype(np.float32))
        writer.add_tensor(
            f"{entry.name}.lora_b", (0.02 * dice.standard_normal((rows, RANK))).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(matrices)


def page(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"Gemma-3-270M on {document['machine']['threads']} threads of {document['machine']['cpu']};"
        " made by `benchmarks/tooling.py`.",
        "",
        "| `quantry imatrix` of | tok/s | own prefill tok/s | ratio |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['tok_s']:.0f} | {r['prefill_tok_s']:.0f} | {r['ratio']:.2f} |"
        for r in document["imatrix"]["rows"]
    ]
    lines += [
        "",
        "| `quantry convert gguf` of | type | seconds | encoders alone | share |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']}, {r['source_bytes'] / 1e9:.1f} GB | {r['type']} | {r['seconds']:.2f} |"
        f" {r['encoders_s']:.2f} | {r['share']:.2f} |"
        for r in document["convert"]
    ]
    found = document["lora"]
    lines += [
        "", "| decoding | tok/s |", "|---|---|", f"| without an adapter | {found['without_tok_s']:.1f} |",
        f"| LoRA of rank {found['rank']} on {found['weights']} weights | {found['with_tok_s']:.1f}"
        f" ({-100 * found['cost']:+.1f} %) |",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

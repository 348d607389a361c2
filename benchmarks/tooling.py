"""What importance, GGUF output and adapters cost on Gemma-3-270M; writes results/tooling.json and .md.

    python benchmarks/tooling.py

* `quantry imatrix`: tokens a second of `collect_importance`, weights read from the folder layer by layer, by
  the prefill speed of the same model, loaded, over the same chunks;
* `quantry convert gguf`: seconds of `convert_gguf` from the dense folder by those of the encoders alone for
  the same tensors and types in memory, on as many threads;
* a GGUF LoRA of rank 16 on every linear layer of every block: decoded tokens a second with it by without.

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
            "convert": [converted(Path(scratch), kind, rounds) for kind in ("Q4_K_M", "IQ4_XS", "Q8_0")],
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
                    model(chunk, use_cache=False)

        def collect(path: Path = path) -> None:
            collect_importance(path, chunks=CHUNKS, chunk_tokens=CHUNK_TOKENS)

        ours, own = best(rounds, collect, prefill)
        tokens = CHUNKS * CHUNK_TOKENS
        rows.append(
            {"model": path.name, "tok_s": tokens / ours, "prefill_tok_s": tokens / own, "ratio": own / ours}
        )
    return {"chunks": CHUNKS, "chunk_tokens": CHUNK_TOKENS, "rows": rows}


def converted(scratch: Path, kind: str, rounds: int) -> dict[str, Any]:
    folder, out = dense_gemma(), scratch / "x.gguf"
    convert_gguf(folder, out, TypeOptions(file_type(kind)))
    made, source = quantry.open(out), quantry.open(folder)
    names = next(r for r in quantry.registry().runtimes if r.why_not(source) is None).other_names(
        source, "gguf"
    )
    packed = [e for e in made.entries() if e.layout.family == "ggml"]
    work = [
        (source[names[e.name]].buffers["weight"].clone(), str(e.layout).partition(":")[2]) for e in packed
    ]
    pieces = [
        (part, kind) for weight, kind in work for part in weight.split(max(1, (2 << 20) // weight.shape[1]))
    ]

    def encode() -> None:
        jobs = torch.get_num_threads()
        quantry.run_bounded(pieces, lambda p: quantry.quantize(*p), lambda _: 1, budget=1 << 30, jobs=jobs)

    ours, alone = best(rounds, lambda: convert_gguf(folder, out, TypeOptions(file_type(kind))), encode)
    return {
        "type": kind,
        "seconds": ours,
        "encoders_s": alone,
        "share": alone / ours,
        "bytes": out.stat().st_size,
    }


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
    lines += ["", "| `quantry convert gguf --type` | seconds | encoders alone | share |", "|---|---|---|---|"]
    lines += [
        f"| {r['type']} | {r['seconds']:.2f} | {r['encoders_s']:.2f} | {r['share']:.2f} |"
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

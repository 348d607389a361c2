"""What the mistralrs wheel makes of quantry.testing.corners, as hashes of UQFF entries: golden files.

Their generators import it: mistralrs 0.9.5 and tokenizers are needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import test_peer_mistralrs as peer
from safetensors.torch import load_file, save_file

from quantry.testing import CORNER_SIZE, CORNERS, corner_weight, tensor_digest

_WRITE = """
import sys
from mistralrs import ModelDType, Runner, Which
model, out, isq = sys.argv[1:]
Runner(which=Which.Plain(dtype=ModelDType.F32, model_id=model, write_uqff=out), in_situ_quant=isq)
"""


def checkpoint(folder: Path) -> Path:
    """A llama of two layers whose attention matrices are the weights."""
    peer.checkpoint(folder, hidden=CORNER_SIZE)
    path = folder / "model.safetensors"
    ours = {f"{slot}.weight": corner_weight(kind) for kind, slot in slots()}
    save_file(load_file(path) | ours, path)
    return folder


def slots() -> list[tuple[str, str]]:
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qkvo"]
    return list(zip(CORNERS, names, strict=True))


def write(types: Iterable[str], path: Path) -> None:
    """Type → kind of weight → suffix of the entry → its hash, as JSON."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(Path(folder) / "model")
        for isq in types:
            out = Path(folder) / isq
            out.mkdir()
            subprocess.run([sys.executable, "-c", _WRITE, model, out / f"{isq}.uqff", isq], check=True)
            entries = load_file(out / f"{isq}-0.uqff")
            found[isq] = {kind: hashes(entries, f"{slot}.weight") for kind, slot in slots()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def hashes(entries: dict, name: str) -> dict[str, str]:
    """Suffix → digest."""
    parts = {key[len(name) :]: t for key, t in entries.items() if key == name or key.startswith(f"{name}.")}
    return {suffix: tensor_digest(t) for suffix, t in sorted(parts.items()) if suffix != ".format"}

"""Write what others make of quantry.testing.corners: hashes of UQFF entries, and numbers of the hqq package.

python plugins/hqq/tests/make_hqq_golden.py          (mistralrs 0.9.5, tokenizers, hqq 0.2.8)
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from quantry.testing import CORNER_SIZE as SIZE
from quantry.testing import CORNERS as KINDS
from quantry.testing import corner_weight as weight

HERE = Path(__file__).parent
TYPES = ("hqq4", "hqq8")
ROWS = 4
_WRITE = """
import sys
from mistralrs import ModelDType, Runner, Which
model, out, isq = sys.argv[1:]
Runner(which=Which.Plain(dtype=ModelDType.F32, model_id=model, write_uqff=out), in_situ_quant=isq)
"""


def checkpoint(folder: Path) -> Path:
    """A llama of two layers whose attention matrices are the weights."""
    spec = importlib.util.spec_from_file_location("peer", HERE.parents[2] / "tests/test_peer_mistralrs.py")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    peer.checkpoint(folder, hidden=SIZE)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {f"{slot}.weight": weight(kind) for kind, slot in slots()}, folder / "model.safetensors"
    )
    return folder


def slots() -> list[tuple[str, str]]:
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qkvo"]
    return list(zip(KINDS, names, strict=True))


def main() -> None:
    found: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(Path(folder) / "model")
        for isq in TYPES:
            out = Path(folder) / isq
            out.mkdir()
            subprocess.run([sys.executable, "-c", _WRITE, model, out / f"{isq}.uqff", isq], check=True)
            entries = load_file(out / f"{isq}-0.uqff")
            found[isq] = {kind: hashes(entries, f"{slot}.weight") for kind, slot in slots()}
    (HERE / "fixtures").mkdir(exist_ok=True)
    (HERE / "fixtures" / "mistralrs.json").write_text(json.dumps(found, indent=1) + "\n")


def hashes(entries: dict, name: str) -> dict[str, str]:
    """Suffix → the first 16 digits of SHA-256 over shape and bytes."""
    parts = {key[len(name) :]: t for key, t in entries.items() if key == name or key.startswith(f"{name}.")}
    return {suffix: hash_of(t) for suffix, t in sorted(parts.items()) if suffix != ".format"}


def hash_of(t) -> str:
    import torch

    raw = t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{t.dtype}{list(t.shape)}".encode() + raw).hexdigest()[:16]


def package() -> None:
    """Codes, scales and zeros of the hqq package along rows, on the CPU."""
    import numpy as np
    from hqq.core.quantize import Quantizer

    found = {}
    for bits in (1, 2, 3, 4, 8):
        for kind in KINDS:
            made, meta = Quantizer.quantize(
                weight(kind)[:ROWS], bits, group_size=64, axis=1, round_zero=bits == 4, device="cpu",
                bitpack=False,
            )  # fmt: skip
            codes = made.view(ROWS, SIZE).byte().numpy()
            found |= {f"{bits}.{kind}.codes": codes}
            found |= {
                f"{bits}.{kind}.{name}": meta[name].view(ROWS, -1).numpy() for name in ("scale", "zero")
            }
    np.savez_compressed(HERE / "fixtures" / "hqq.npz", **found)


if __name__ == "__main__":
    main()
    package()

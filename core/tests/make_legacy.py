"""Write fixtures/uqff0.safetensors: one layer as mistralrs 0.6.0 (UQFF 0.1.3) and as 0.9.5 (1.2.0) store it.

    python make_legacy.py PYTHON_OF_0_6_0 PYTHON_OF_0_9_5

Each PYTHON has that version of `mistralrs` installed. The model is a qwen2 of one block with random weights;
the layer is q_proj [64, 64], which has a bias. By type: `<type>/blob`, and `<type>/weight`,
`<type>/weight.*`, `<type>/bias`. `names` is the order of the layers, by the bytes of q8_0's blobs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TYPES = ("q8_0", "q4k", "hqq4", "hqq8", "fp8", "afq4", "afq3")
TARGET = Path(__file__).parent / "fixtures" / "uqff0.safetensors"
HIDDEN, VOCAB = 64, 8
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": VOCAB, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "sliding_window": None, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "use_sliding_window": False, "max_window_layers": 1, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KEY = "model.layers.0.self_attn.q_proj"

_WRITE = """
import sys
from mistralrs import ModelDType, Runner, Which
model, isq, out = sys.argv[1:]
Runner(which=Which.Plain(model_id=model, dtype=ModelDType.F32, write_uqff=out), in_situ_quant=isq)
"""


def checkpoint(folder: Path) -> None:
    """config, weights and a tokenizer of eight words."""
    generator, block = torch.Generator().manual_seed(0), "model.layers.0"
    shapes = {f"{block}.self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
    shapes |= {f"{block}.self_attn.{n}_proj.bias": (HIDDEN,) for n in "qkv"}
    shapes |= {f"{block}.mlp.{n}_proj.weight": (HIDDEN, HIDDEN) for n in ("gate", "up", "down")}
    shapes |= {f"{block}.{n}_layernorm.weight": (HIDDEN,) for n in ("input", "post_attention")}
    shapes |= {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    shapes |= {"model.norm.weight": (HIDDEN,)}
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"])}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))


def main(old: str, new: str) -> None:
    """Both versions write every type."""
    held: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "hf"
        model.mkdir()
        checkpoint(model)
        for isq in TYPES:
            found = {}
            for python in (old, new):
                out = Path(place) / f"{isq}-{python == old}" / "x.uqff"
                out.parent.mkdir()
                subprocess.run([python, "-c", _WRITE, str(model), isq, str(out)], check=True)
                found[python] = load_file(out.with_name("x-0.uqff"))
            held[f"{isq}/blob"] = found[old]["1"]
            for name, tensor in found[new].items():
                if name.startswith(f"{KEY}."):
                    held[f"{isq}/{name.removeprefix(f'{KEY}.')}"] = tensor
            if isq == "q8_0":
                weights = {n: t for n, t in found[new].items() if n.endswith((".weight", ".bias"))}
                held["names"] = torch.tensor(
                    list("\n".join(_order(found[old], weights)).encode()), dtype=torch.uint8
                )
    TARGET.parent.mkdir(exist_ok=True)
    save_file(held, TARGET)


def _order(blobs: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> list[str]:
    """The layer whose packed bytes each blob holds, by number."""
    names = []
    for index in range(len(blobs)):
        blob = bytes(blobs[str(index)].tolist())
        hits = [n for n, t in weights.items() if t.dtype == torch.uint8 and bytes(t.tolist()) in blob]
        (name,) = hits
        names.append(name.removesuffix(".weight"))
    return names


if __name__ == "__main__":
    main(*sys.argv[1:])

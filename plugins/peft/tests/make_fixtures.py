"""Write the folders of `fixtures` with peft itself, and beside each the changes as peft computes them.

python plugins/peft/tests/make_fixtures.py    (needs peft and transformers; made with peft 0.21.2)
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

FIXTURES = Path(__file__).with_name("fixtures")
LINEAR = ["q_proj", "v_proj", "down_proj"]
FOLDERS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": LINEAR},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": [*LINEAR, "embed_tokens", "lm_head"],
        "rank_pattern": {"layers.1.self_attn.v_proj": 2, "^model.layers.0.*q_proj": 3},
        "alpha_pattern": {"down_proj": 5, "embed_tokens": 10},
        "use_rslora": True,
    },
}


def main() -> None:
    """Deterministic but for the versions that the configuration names."""
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    for name, options in FOLDERS.items():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config)
        model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **options))
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # embeddings are saved along, which is meant
            model.save_pretrained(folder)
        (folder / "README.md").unlink()
        changes = {
            f"{path}.weight": module.get_delta_weight("default").detach().contiguous()
            for path, module in base.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        save_file(changes, folder / "changes.safetensors")


if __name__ == "__main__":
    main()

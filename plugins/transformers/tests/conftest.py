"""Tiny random models of every architecture, written as GGUF by the `gguf` package: an independent writer."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves this folder off it

from gguf_fixtures import (  # noqa: F401
    gguf_corpus,
    gguf_texts,
    llama_cpp_ids,
    model_folder,
    read_by_transformers,
    tokenizer_folder,
    write_exported,
)

VOCAB = 96
_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
# arch → (config class, fields beyond _BASE)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"head_dim": 16, "rope_theta": 50_000.0}),
    "mistral": ("MistralConfig", {"head_dim": 16, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "rope_theta": 1e6}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 256}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "num_hidden_layers": 4}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "num_hidden_layers": 7, "rope_theta": 1e6}),
}


@dataclass
class Tiny:
    """A model whose weights are the dequantized ones of the file at `path`."""

    arch: str
    path: Path
    model: Any


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """tiny(arch, type="Q8_0", edit=None, **changes): a model and its file. edit(writer, tensors) may lie."""

    made: dict[str, Tiny] = {}

    def make(arch: str, type: str = "Q8_0", edit: Callable[..., Any] | None = None, **changes: Any) -> Tiny:
        key = f"{arch} {type} {sorted(changes.items())}"
        if edit is None and key in made:
            return made[key]
        torch.manual_seed(len(arch))
        name, fields = MODELS[arch]
        config = getattr(transformers, name)(**{**_BASE, **fields, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.3 if p.dim() == 1 else 2 / math.sqrt(p.shape[-1]))
        path = tmp_path_factory.mktemp("tiny") / f"{arch}.gguf"
        write_gguf(model, arch, path, gguf.GGMLQuantizationType[type], edit)
        found = Tiny(arch, path, model)
        if edit is None:
            made[key] = found
        return found

    return make


@pytest.fixture(scope="session")
def hf_folder() -> Callable[[Path, Any], Any]:
    """hf_folder(path, config): a model of random weights, saved at `path` with a tokenizer of letters."""

    def make(path: Path, config: Any) -> Any:
        torch.manual_seed(len(config.model_type))
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.3 if p.dim() == 1 else 1 / math.sqrt(p.shape[-1]))
        model.save_pretrained(path)
        write_letter_tokenizer(path)
        return model

    return make


def write_letter_tokenizer(folder: Path) -> None:
    """One token a letter, the space 4, the dot 5, a 6, and BOS before a text."""
    known = ["<pad>", "<s>", "</s>", "<unk>", *" .abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_gguf(model: Any, arch: str, path: Path, kind: Any, edit: Callable[..., Any] | None = None) -> None:
    """Write as llama.cpp's converter does, and round the model's own matrices to what the file holds."""
    writer = gguf.GGUFWriter(path, arch)
    write_metadata(writer, model.config, arch)
    tensors = dict(gguf_tensors(model, arch, kind))
    if edit is not None:
        edit(writer, tensors)
    for name, (data, raw) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_metadata(w: Any, config: Any, arch: str) -> None:
    """Shapes, rotary parameters and a character vocabulary."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    if arch != "phi3":
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if arch != "gemma2":
        w.add_rope_freq_base(rope["rope_theta"])
    if arch in ("llama", "mistral", "phi3"):
        w.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch == "phi3":
        w.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        w.add_sliding_window(config.sliding_window or 0)
    if arch in ("gemma2", "gemma3"):
        w.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(config.attn_logit_softcapping)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    chars = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.", "\u2581a", "th", "the", "\u2581the"]
    tokens = ["<unk>", "<s>", "</s>", *chars, *(f"<extra_{i}>" for i in range(VOCAB - 3 - len(chars)))]
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores([-float(i) for i in range(VOCAB)])
    w.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_pad_token_id(0)
    w.add_add_space_prefix(False)


def gguf_tensors(model: Any, arch: str, kind: Any) -> Any:
    """(name, (bytes or floats, type)) of each parameter, names by the `gguf` package."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[_gguf_arch(arch)], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, p in model.named_parameters(remove_duplicate=True):
        if tied and name == "lm_head.weight":
            continue
        stem, leaf = name.rsplit(".", 1)
        data: Any = p.detach().numpy()
        raw = gguf.GGMLQuantizationType.F32
        if p.dim() == 2:
            raw = kind
            data = gguf.quants.quantize(data, kind)
            with torch.no_grad():
                p.copy_(torch.from_numpy(gguf.quants.dequantize(data, kind)))
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if arch in ("llama", "mistral") and "q_proj" in name:
            data = permute(data, config.num_attention_heads)
        if arch in ("llama", "mistral") and "k_proj" in name:
            data = permute(data, config.num_key_value_heads)
        yield f"{names.get_name(stem)}.{leaf}", (np.ascontiguousarray(data), raw)


def permute(rows: Any, heads: int) -> Any:
    """llama.cpp conversion/llama.py `permute`."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _gguf_arch(arch: str) -> str:
    return "LLAMA" if arch == "mistral" else arch.upper()


@dataclass
class Lora:
    """Random changes of a model's matrices: weight name → a [r, K], b [N, r]; each is scale · b · a."""

    arch: str
    halves: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int
    scale: float = 2.0

    def gguf(self, path: Path, dtype: Any = np.float32, arch: str | None = None) -> Path:
        """As llama.cpp's convert_lora_to_gguf.py writes them, with alpha = scale · rank."""
        writer = gguf.GGUFWriter(path, arch or self.arch)
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, self.scale * self.rank)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[_gguf_arch(self.arch)], 8)
        for weight, (a, b) in self.halves.items():
            name = names.get_name(weight.removesuffix(".weight")) + ".weight"
            first, second = a.numpy(), b.numpy()
            if name == "token_embd.weight":
                first, second = second, first.T
            if self.arch in ("llama", "mistral") and ("q_proj" in weight or "k_proj" in weight):
                second = permute(second, 4 if "q_proj" in weight else 2)
            writer.add_tensor(name + ".lora_a", np.ascontiguousarray(first, dtype))
            writer.add_tensor(name + ".lora_b", np.ascontiguousarray(second, dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def peft(self, path: Path) -> Path:
        """As peft saves them, with lora_alpha = scale · rank."""
        path.mkdir()
        config = {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.scale * self.rank}
        (path / "adapter_config.json").write_text(json.dumps(config))
        tensors = {}
        for weight, (a, b) in self.halves.items():
            stem = "base_model.model." + weight.removesuffix(".weight")
            if weight.endswith("embed_tokens.weight"):
                tensors[f"{stem}.lora_embedding_A"], tensors[f"{stem}.lora_embedding_B"] = b.T, a.T
            else:
                tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a, b
        save_file({n: t.clone().contiguous() for n, t in tensors.items()}, path / "adapter_model.safetensors")
        return path

    def add_to(self, model: Any, scale: float = 1.0) -> Any:
        """The float64 model with changed weights; a tied head keeps its weight, as in peft and llama.cpp."""
        for weight, (a, b) in self.halves.items():
            module = model.get_submodule(weight.removesuffix(".weight"))
            change = scale * self.scale * b.double() @ a.double()
            module.weight = torch.nn.Parameter(module.weight.detach() + change, requires_grad=False)
        return model


@pytest.fixture(scope="session")
def lora() -> Callable[..., Lora]:
    """lora(tiny, rank=4, only="", seed=0): of its linear layers and embedding with `only` in their names."""

    def make(tiny: Tiny, rank: int = 4, only: str = "", seed: int = 0) -> Lora:
        generator = torch.Generator().manual_seed(seed)
        halves = {}
        kinds = (torch.nn.Linear, torch.nn.Embedding)
        for name, module in tiny.model.named_modules():
            if isinstance(module, kinds) and name != "lm_head" and only in name:
                rows, columns = module.weight.shape
                a = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
                halves[f"{name}.weight"] = a, torch.randn(rows, rank, generator=generator) / 4
        return Lora(tiny.arch, halves, rank)

    return make

"""How model types of transformers are written as GGUF: one row each, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from quantry import UsageError
from quantry_transformers.architectures import ARCHITECTURES, Architecture

__all__ = ["GGUF_MODELS", "GgufModel", "gguf_model"]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A row of the table.

    arch: names and transforms; `arch.gguf` is what `general.architecture` says. fixed: config fields that
    llama.cpp takes for granted, so that no file states them.
    integers: keys beyond every model's, with the config field each has its value from.
    head: "any"; "tied": llama.cpp multiplies by the embedding whatever the file holds; "own": it needs one.
    vocab_size: whether the converter states the number of tokens.
    """

    arch: Architecture
    fixed: Mapping[str, Any] = field(default_factory=dict)
    integers: Mapping[str, str] = field(default_factory=dict)
    head: Literal["any", "tied", "own"] = "any"
    vocab_size: bool = False


# GGUF module name → transformers' below `model.layers.N.`, experts by the names of their stacks
_ATTENTION = {
    name: module
    for name, module in ARCHITECTURES["llama"].block.items()
    if name not in ("ffn_gate", "ffn_up", "ffn_down")
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MIXTURE = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": []}


def _row(arch: str, model_type: str, model_class: str, **changes: Any) -> Architecture:
    return replace(ARCHITECTURES[arch], model_type=model_type, model_class=model_class, **changes)


_ROWS = (
    GgufModel(ARCHITECTURES["llama"], vocab_size=True),
    # llama.cpp reads Mistral as Llama: no window, every layer sees everything
    GgufModel(_row("llama", "mistral", "MistralForCausalLM"), vocab_size=True),
    GgufModel(ARCHITECTURES["qwen2"]),
    GgufModel(ARCHITECTURES["qwen3"]),
    GgufModel(ARCHITECTURES["phi3"]),
    GgufModel(ARCHITECTURES["gemma2"], head="tied"),
    GgufModel(ARCHITECTURES["gemma3"]),
    GgufModel(
        _row("llama", "mixtral", "MixtralForCausalLM", block={**_ATTENTION, **_EXPERTS}),
        integers={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        vocab_size=True,
    ),
    GgufModel(
        _row(
            "qwen2",
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            gguf="qwen2moe",
            constants={"hidden_act": "silu", "use_sliding_window": False},
            block={**_ATTENTION, **_EXPERTS, **_SHARED},
        ),
        # llama.cpp normalizes the weights of qwen3's chosen experts, and does not those of qwen2's
        fixed={**_EVERY_LAYER, "norm_topk_prob": False},
        integers={
            **_MIXTURE,
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        head="own",
    ),
    GgufModel(
        _row(
            "qwen3",
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            gguf="qwen3moe",
            block={**_ATTENTION, **_QK_NORMS, **_EXPERTS},
        ),
        fixed={**_EVERY_LAYER, "norm_topk_prob": True},
        integers={**_MIXTURE, "expert_feed_forward_length": "moe_intermediate_size"},
    ),
)

GGUF_MODELS: Mapping[str, GgufModel] = MappingProxyType({row.arch.model_type: row for row in _ROWS})
"""`model_type` of config.json → how it is written."""


def gguf_model(config: Mapping[str, Any], file: str) -> GgufModel:
    """The row of a `config.json`. Raises UsageError that names its model type and lists the known ones."""
    kind = config.get("model_type")
    row = GGUF_MODELS.get(kind) if isinstance(kind, str) else None
    if row is not None:
        return row
    what = (
        f"models of type {kind!r} cannot be written as GGUF" if kind else "its config.json has no model_type"
    )
    if "auto_map" in config:
        what += ", and code that a folder brings along is not run"
    hint = f"Known are {', '.join(sorted(GGUF_MODELS))}."
    if isinstance(config.get("text_config"), Mapping):
        hint += " Of models that also see or hear, the language model has to be saved alone."
    raise UsageError(what, file=file, hint=hint)

"""The architectures of GGUF files we can build: one row each, numbers and names only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from quantry import UsageError

__all__ = ["ARCHITECTURES", "Architecture", "architecture"]

# GGUF module name → transformers' below `model.layers.N.` (gguf/tensor_mapping.py; checked by a test)
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_BLOCK = {
    **_LLAMA_BLOCK,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a GGUF file of this `general.architecture` leaves unsaid, and how its tensors differ.

    block: module names of a layer, GGUF to transformers. constants: config fields the architecture fixes.
    interleaved_rope: q and k rows are stored for interleaved rotation and are moved back
    (gguf-py/gguf/tensor_mapping.py).
    norm_offset: added to every norm weight by the converter; transformers' modules add it themselves.
    head_dim_field: whether the config class has `head_dim`.
    bias_fields: config flags that the presence of a GGUF bias tensor decides.
    sliding: "none"; "window": every layer slides when the file names a window; "pattern": layers alternate,
    every `sliding_pattern`-th one sees everything. nested_rope: rotary parameters per layer type.
    partial_rotary: the rotated part of a head may be smaller than the head.
    attention_scalar: the config has `query_pre_attn_scalar`, which no file states: head_dim, but hidden_size
    / heads for models of `hidden_scaled_layers` layers.
    softcaps: config fields of logit caps, with what an absent key means.
    """

    gguf: str
    model_type: str
    model_class: str
    block: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    interleaved_rope: bool = False
    norm_offset: float = 0.0
    head_dim_field: bool = True
    bias_fields: Mapping[str, str] = field(default_factory=dict)
    sliding: Literal["none", "window", "pattern"] = "none"
    sliding_pattern: int = 1
    nested_rope: bool = False
    partial_rotary: bool = False
    attention_scalar: bool = False
    hidden_scaled_layers: frozenset[int] = frozenset()
    softcaps: Mapping[str, float | None] = field(default_factory=dict)


_SILU = {"hidden_act": "silu"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_QWEN = {"hidden_act": "silu", "use_sliding_window": False, "sliding_window": None}
_QKV_BIAS = {"attention_bias": "attn_q.bias"}

_ROWS = (
    Architecture(
        "llama",
        "llama",
        "LlamaForCausalLM",
        _LLAMA_BLOCK,
        _SILU,
        interleaved_rope=True,
        bias_fields={**_QKV_BIAS, "mlp_bias": "ffn_gate.bias"},
    ),
    Architecture(
        "mistral",
        "mistral",
        "MistralForCausalLM",
        _LLAMA_BLOCK,
        _SILU,
        interleaved_rope=True,
        sliding="window",
    ),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", _LLAMA_BLOCK, _QWEN, head_dim_field=False),
    Architecture(
        "qwen3", "qwen3", "Qwen3ForCausalLM", {**_LLAMA_BLOCK, **_QK_NORMS}, _QWEN, bias_fields=_QKV_BIAS
    ),
    Architecture(
        "phi3",
        "phi3",
        "Phi3ForCausalLM",
        _PHI3_BLOCK,
        _SILU,
        head_dim_field=False,
        sliding="window",
        partial_rotary=True,
    ),
    Architecture(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA_BLOCK,
        _GELU,
        norm_offset=1.0,
        sliding="pattern",
        sliding_pattern=2,
        attention_scalar=True,
        hidden_scaled_layers=frozenset({46}),  # 27B: 4608 / 32 (llama.cpp src/models/gemma2.cpp)
        # absent keys mean these values (llama.cpp llama-hparams.h)
        softcaps={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    Architecture(
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_GEMMA_BLOCK, **_QK_NORMS},
        _GELU,
        norm_offset=1.0,
        sliding="pattern",
        sliding_pattern=6,
        nested_rope=True,
        attention_scalar=True,
        hidden_scaled_layers=frozenset({62}),  # 27B: 5376 / 32 (llama.cpp src/models/gemma3.cpp)
        softcaps={"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({row.gguf: row for row in _ROWS})


def architecture(name: str | None) -> Architecture:
    """The row of a GGUF architecture. Raises UsageError that names it and lists the known ones."""
    row = ARCHITECTURES.get(name or "")
    if row is None:
        what = "the file names no architecture" if name is None else f"architecture {name!r} is not supported"
        raise UsageError(
            what, hint=f"quantry-transformers builds {', '.join(sorted(ARCHITECTURES))} from GGUF files."
        )
    return row

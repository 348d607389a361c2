"""Tensor names: GGUF to transformers and back."""

from __future__ import annotations

import re

from quantry_transformers.architectures import Architecture

__all__ = ["CONFIG_TENSORS", "block_count", "to_gguf", "to_hf"]

CONFIG_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""GGUF tensors that are rotary parameters: they become config fields, not weights."""

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_TOP_BACK = {hf: gguf for gguf, hf in _TOP.items()}
_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\Z")
_HF_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\Z")


def to_hf(name: str, arch: Architecture) -> str | None:
    """The transformers parameter of a GGUF tensor, None when the architecture has no such tensor.

    >>> from quantry_transformers.architectures import ARCHITECTURES
    >>> to_hf("blk.3.ffn_norm.weight", ARCHITECTURES["gemma3"])
    'model.layers.3.pre_feedforward_layernorm.weight'
    """
    stem, dot, leaf = name.rpartition(".")
    match = _GGUF_BLOCK.match(stem)
    if match is None:
        hf = _TOP.get(stem)
    else:
        module = arch.block.get(match[2])
        hf = None if module is None else f"model.layers.{int(match[1])}.{module}"
    return None if hf is None or leaf not in ("weight", "bias") else hf + dot + leaf


def to_gguf(name: str, arch: Architecture) -> str | None:
    """The GGUF tensor of a transformers parameter, None when GGUF has none.

    >>> from quantry_transformers.architectures import ARCHITECTURES
    >>> to_gguf("model.layers.0.self_attn.qkv_proj.weight", ARCHITECTURES["phi3"])
    'blk.0.attn_qkv.weight'
    """
    stem, dot, leaf = name.rpartition(".")
    match = _HF_BLOCK.match(stem)
    if match is None:
        gguf = _TOP_BACK.get(stem)
    else:
        module = next((g for g, hf in arch.block.items() if hf == match[2]), None)
        gguf = None if module is None else f"blk.{match[1]}.{module}"
    return None if gguf is None else gguf + dot + leaf


def block_count(names: list[str]) -> int:
    """One more than the highest layer number among GGUF tensor names."""
    return max((int(m[1]) + 1 for name in names if (m := _GGUF_BLOCK.match(name))), default=0)

"""Rotary parameters of a GGUF file as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from quantry import FormatError
from quantry_transformers.architectures import Architecture
from quantry_transformers.metadata import Metadata

if TYPE_CHECKING:
    from quantry import Checkpoint

__all__ = ["parameters"]

_THETA = 10_000.0  # what an absent rope.freq_base means (llama.cpp src/llama-model.cpp)
# the numbers behind every published Llama 3.1, 3.2, 3.3: only `factor` varies (32, 8)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def parameters(checkpoint: Checkpoint, keys: Metadata, arch: Architecture, head_dim: int) -> dict[str, Any]:
    """`{"rope_parameters": …}`, and what else the architecture's config keeps beside it."""
    theta = keys.real("rope.freq_base", _THETA)
    rotated = keys.integer("rope.dimension_count", head_dim)
    if rotated != head_dim and not (arch.partial_rotary and rotated < head_dim):
        raise keys.wrong(
            "rope.dimension_count", f"is {rotated}, but heads have {head_dim} values, all rotated"
        )
    if "rope_factors_short.weight" in checkpoint or "rope_factors_long.weight" in checkpoint:
        found = _longrope(checkpoint, keys, rotated)
    elif "rope_freqs.weight" in checkpoint:
        found = _frequency_factors(_factors(checkpoint, "rope_freqs.weight", rotated), theta, rotated, keys)
    else:
        found = _scaled(keys)
    found = {"rope_theta": theta, **found}
    if arch.partial_rotary:
        found["partial_rotary_factor"] = rotated / head_dim
    if arch.nested_rope:
        local = {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", _THETA)}
        return {"rope_parameters": {"full_attention": found, "sliding_attention": local}}
    fields: dict[str, Any] = {"rope_parameters": found}
    if arch.model_type == "phi3":
        original = found.get("original_max_position_embeddings", keys.integer("context_length"))
        fields["original_max_position_embeddings"] = original
    return fields


def _scaled(keys: Metadata) -> dict[str, Any]:
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    factor = keys.real("rope.scaling.factor")
    if factor <= 0:
        raise keys.wrong("rope.scaling.factor", f"must be positive, found {factor}")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise keys.wrong(
            "rope.scaling.type", f"is {kind!r}; known are none, linear and yarn, and factor tensors"
        )
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if (value := keys.real(f"rope.scaling.{theirs}", None)) is not None:
            found[ours] = value
    scale = keys.real("rope.scaling.yarn_attn_factor", None)
    if scale is not None:
        # ggml multiplies its own 1 + 0.1 ln(factor) by it (ops.cpp, rope_yarn); here goes the product
        found["attention_factor"] = scale * (1.0 + 0.1 * math.log(factor)) if factor > 1 else scale
    return found


def _longrope(checkpoint: Checkpoint, keys: Metadata, rotated: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": _factors(checkpoint, "rope_factors_short.weight", rotated),
        "long_factor": _factors(checkpoint, "rope_factors_long.weight", rotated),
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
    }
    if (scale := keys.real("rope.scaling.attn_factor", None)) is not None:
        found["attention_factor"] = scale
    return found


def _frequency_factors(factors: list[float], theta: float, rotated: int, keys: Metadata) -> dict[str, Any]:
    """Divisors of the frequencies: Llama 3's rule where it gives them, else the same at every length."""
    factor = max(factors)
    rule = [_llama3_divisor(theta ** (-2 * i / rotated), factor) for i in range(rotated // 2)]
    if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, rule, strict=True)):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": keys.integer("context_length"),
    }


def _llama3_divisor(frequency: float, factor: float) -> float:
    turns = _LLAMA3["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    if turns > high:
        return 1.0
    if turns < low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _factors(checkpoint: Checkpoint, name: str, rotated: int) -> list[float]:
    if name not in checkpoint:
        raise FormatError("is missing", file=checkpoint.source.path, tensor=name)
    shape = checkpoint.entry(name).shape
    if shape != (rotated // 2,):
        raise FormatError(
            f"must have shape [{rotated // 2}], has {list(shape)}", file=checkpoint.source.path, tensor=name
        )
    values: list[float] = checkpoint[name].dequantize().tolist()
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise FormatError("holds a factor that is not positive", file=checkpoint.source.path, tensor=name)
    return values

"""transformers' `rope_parameters` as GGUF keys and factor tensors: what `rope.parameters` reads, written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantry_transformers.gguf_models import GgufModel

if TYPE_CHECKING:
    from quantry_transformers.gguf_metadata import Fields

__all__ = ["RopeKeys", "rope_keys"]


@dataclass(frozen=True, slots=True)
class RopeKeys:
    """keys: below `<architecture>.`. tensors: float32 [rotated / 2]."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)


def rope_keys(known: Fields, model: GgufModel, head_dim: int) -> RopeKeys:
    """Base frequency, scaling and factors. Raises UsageError for rotary embeddings GGUF cannot express."""
    arch = model.arch
    stated: Any = known.get("rope_parameters")
    full = stated.get("full_attention", stated) if isinstance(stated, Mapping) else None
    local = stated.get("sliding_attention", full) if isinstance(stated, Mapping) else None
    if not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise known.refused(f"rope_parameters is {stated!r}")
    keys: dict[str, Any] = {"rope.freq_base": _number(known, full, "rope_theta")}
    if arch.nested_rope:
        if local.get("rope_type", "default") != "default":
            raise known.refused(f"the rotary embedding of sliding layers is {local['rope_type']!r}")
        keys["rope.freq_base_swa"] = _number(known, local, "rope_theta")
    part = _number(known, full, "partial_rotary_factor") if "partial_rotary_factor" in full else 1.0
    rotated = int(head_dim * part)
    if rotated != head_dim and not arch.partial_rotary:
        raise known.refused(f"only {rotated} of each head's {head_dim} values are rotated")
    if arch.interleaved_rope or arch.partial_rotary:
        keys["rope.dimension_count"] = rotated
    if arch.partial_rotary:
        keys["rope.scaling.original_context_length"] = _original(known, full)
    scaled = _scaling(known, model, full, rotated)
    return RopeKeys({**keys, **scaled.keys}, scaled.tensors)


def _scaling(known: Fields, model: GgufModel, full: Mapping[str, Any], rotated: int) -> RopeKeys:
    kind = full.get("rope_type", "default")
    interleaved, partial = model.arch.interleaved_rope, model.arch.partial_rotary
    if kind == "default":
        return RopeKeys({})
    if kind == "linear" and not partial:
        return RopeKeys(
            {"rope.scaling.type": "linear", "rope.scaling.factor": _number(known, full, "factor")}
        )
    if kind == "yarn" and not partial:
        return RopeKeys(_yarn(known, full))
    # `rope_freqs` is read for Llama's architecture only (llama.cpp src/models/)
    if kind == "llama3" and interleaved:
        return RopeKeys({}, {"rope_freqs.weight": _llama3(known, full, rotated)})
    if kind in ("longrope", "su"):
        short, long = (_factors(known, full, f"{length}_factor", rotated) for length in ("short", "long"))
        if partial:
            tensors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
            return RopeKeys({"rope.scaling.attn_factor": _longrope_attention(known, full)}, tensors)
        if interleaved and np.array_equal(short, long) and full.get("attention_factor") == 1.0:
            return RopeKeys({}, {"rope_freqs.weight": long})
    raise known.refused(f"its rotary embedding is {kind!r}")


def _yarn(known: Fields, full: Mapping[str, Any]) -> dict[str, Any]:
    factor = _number(known, full, "factor")
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": _original(known, full),
    }
    for ours, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if full.get(ours) is not None and full[ours] != default:
            keys[f"rope.scaling.yarn_{ours}"] = _number(known, full, ours)
    for name in ("mscale", "mscale_all_dim"):
        if full.get(name):
            raise known.refused(f"its yarn has {name} {full[name]!r}")
    own = 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0
    stated = own if full.get("attention_factor") is None else _number(known, full, "attention_factor")
    if not math.isclose(stated, own, rel_tol=1e-6):
        # llama.cpp multiplies its own by attn_factor (src/llama-context.cpp), `rope` by yarn_attn_factor
        keys["rope.scaling.attn_factor"] = keys["rope.scaling.yarn_attn_factor"] = stated / own
    return keys


def _llama3(known: Fields, full: Mapping[str, Any], rotated: int) -> np.ndarray:
    """Divisors of the frequencies (transformers modeling_rope_utils.py, _compute_llama3_parameters)."""
    low, high = (_number(known, full, f"{name}_freq_factor") for name in ("low", "high"))
    factor = _number(known, full, "factor")
    if high <= low:
        raise known.refused(f"high_freq_factor {high} is not above low_freq_factor {low}")
    frequencies = _number(known, full, "rope_theta") ** (
        -np.arange(0, rotated, 2, dtype=np.float64) / rotated
    )
    turns = _original(known, full) * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _longrope_attention(known: Fields, full: Mapping[str, Any]) -> float:
    if full.get("attention_factor") is not None:
        return _number(known, full, "attention_factor")
    original = _original(known, full)
    scale = known.integer("max_position_embeddings") / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _factors(known: Fields, full: Mapping[str, Any], name: str, rotated: int) -> np.ndarray:
    stated = full.get(name)
    found = [v for v in stated if isinstance(v, (int, float)) and v > 0] if isinstance(stated, list) else []
    if len(found) != rotated // 2 or found != stated:
        raise known.refused(f"{name} of its rotary embedding is not {rotated // 2} positive numbers")
    return np.array(found, np.float32)


def _number(known: Fields, full: Mapping[str, Any], name: str) -> float:
    found = full.get(name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise known.refused(f"{name} of its rotary embedding is {found!r}, not a positive number")
    return float(found)


def _original(known: Fields, full: Mapping[str, Any]) -> int:
    fallback = known.get("original_max_position_embeddings", known.get("max_position_embeddings"))
    found = full.get("original_max_position_embeddings", fallback)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise known.refused(f"original_max_position_embeddings is {found!r}")
    return found

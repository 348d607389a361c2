"""A transformers configuration as GGUF key-values: what `config.hf_config` reads, written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantry import UsageError
from quantry_transformers.gguf_models import GgufModel
from quantry_transformers.gguf_rope import RopeKeys, rope_keys

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["architecture_keys"]

_COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}


def architecture_keys(
    config: PreTrainedConfig, model: GgufModel, file: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Keys below `<architecture>.`, and the tensors of rotary factors, float32 [rotated / 2].

    Raises UsageError for a configuration that llama.cpp would compute otherwise.
    """
    arch = model.arch
    known = Fields(config, arch.gguf, file)
    for field, value in {**arch.constants, **model.fixed}.items():
        known.expect(field, value)
    integers = {**_COMMON, **model.integers}
    keys: dict[str, Any] = {key: known.integer(field) for key, field in integers.items()}
    if model.vocab_size:
        keys["vocab_size"] = known.integer("vocab_size")
    keys["attention.layer_norm_rms_epsilon"] = known.real("rms_norm_eps")
    heads, hidden = known.integer("num_attention_heads"), known.integer("hidden_size")
    if not heads:
        raise known.refused("num_attention_heads is 0")
    head_dim = known.integer("head_dim") if known.get("head_dim") else hidden // heads
    if arch.head_dim_field or head_dim * heads != hidden:
        keys["attention.key_length"] = keys["attention.value_length"] = head_dim
    for field, default in arch.softcaps.items():
        keys.update(_softcap(known, field, default))
    if arch.attention_scalar:
        scaled = hidden // heads if keys["block_count"] in arch.hidden_scaled_layers else head_dim
        known.expect("query_pre_attn_scalar", scaled)
    keys.update(_sliding(known, model))
    rope: RopeKeys = rope_keys(known, model, head_dim)
    return {f"{arch.gguf}.{key}": value for key, value in {**keys, **rope.keys}.items()}, dict(rope.tensors)


class Fields:
    """Typed access to a configuration: every complaint names the field and the file."""

    def __init__(self, config: PreTrainedConfig, architecture: str, file: str) -> None:
        self.config = config
        self.architecture = architecture
        self.file = file

    def refused(self, problem: str) -> UsageError:
        """The error that says what GGUF cannot hold."""
        return UsageError(
            f"{problem}: GGUF files of architecture {self.architecture!r} cannot say so", file=self.file
        )

    def get(self, field: str, default: Any = None) -> Any:
        """The value as it is."""
        return getattr(self.config, field, default)

    def expect(self, field: str, value: Any) -> None:
        """Raises UsageError where the field has another value than the one GGUF takes for granted."""
        found = self.get(field, value)
        if found != value and (found or value):  # None, [] and 0 all mean without
            raise self.refused(f"{field} is {found!r} and not {value!r}")

    def integer(self, field: str) -> int:
        """A whole number that has to be there."""
        found = self.get(field)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise self.refused(f"{field} is {found!r}, not one whole number")
        return found

    def real(self, field: str) -> float:
        """A number that has to be there."""
        found = self.get(field)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise self.refused(f"{field} is {found!r}, not a finite number")
        return float(found)


def _softcap(known: Fields, field: str, default: float | None) -> dict[str, float]:
    """default: what an absent key means to llama.cpp."""
    if known.get(field) is None:
        if default is not None:
            raise known.refused(f"{field} is not set")
        return {}
    if field == "attn_logit_softcapping" and default is None:
        raise known.refused(f"{field} is {known.get(field)!r}")
    return {field: known.real(field)}


def _sliding(known: Fields, model: GgufModel) -> dict[str, Any]:
    arch = model.arch
    if arch.sliding == "none":
        return {}
    if arch.sliding == "window":
        window = known.integer("sliding_window") if known.get("sliding_window") else 0
        return {"attention.sliding_window": window}
    slides = [kind == "sliding_attention" for kind in known.get("layer_types") or ()]
    keys: dict[str, Any] = (
        {"attention.sliding_window": known.integer("sliding_window")} if any(slides) else {}
    )
    if slides != [(i + 1) % arch.sliding_pattern != 0 for i in range(len(slides))]:
        # read by llama.cpp since its load_swa_pattern (src/llama-model.cpp)
        keys["attention.sliding_window_pattern"] = np.array(slides)
    return keys

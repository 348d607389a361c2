"""A GGUF checkpoint as a transformers folder would hold it, its weights packed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantry import Exported
from quantry_transformers.config import end_tokens, hf_config
from quantry_transformers.tokenizer import PlainTokenizer, gguf_tokenizer
from quantry_transformers.weights import gguf_weights

if TYPE_CHECKING:
    from quantry import Checkpoint

__all__ = ["hf_state"]


def hf_state(checkpoint: Checkpoint) -> Exported:
    """A GGUF checkpoint as what a folder needs to load again with equal text, weights read when asked for.

    The parts are arguments of `quantry.save_uqff(path, weights, config=config, files=files)`.
    Raises as `quantry.load_model` does where the checkpoint cannot be built.
    """
    config = hf_config(checkpoint)
    weights = gguf_weights(checkpoint, config)
    generation = {name: config[name] for name in ("bos_token_id", "pad_token_id") if config[name] is not None}
    generation["eos_token_id"] = end_tokens(checkpoint)
    files = {"generation_config.json": _json(generation), **_tokenizer_files(gguf_tokenizer(checkpoint))}
    return Exported({**config, **_older_names(config)}, weights, files)


def _tokenizer_files(tokenizer: PlainTokenizer) -> dict[str, bytes]:
    named = {kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "unk_token", "pad_token")}
    settings = {
        # the plain class: one for the model type would build its own backend from the vocabulary
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos_token,
        "add_eos_token": tokenizer.add_eos_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        **{kind: token for kind, token in named.items() if token is not None},
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    text = tokenizer.backend_tokenizer.to_str(pretty=False)
    return {"tokenizer.json": text.encode(), "tokenizer_config.json": _json(settings)}


def _older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary fields as transformers before 5 and mistral.rs read them."""
    rope = config["rope_parameters"]
    if "full_attention" not in rope:
        scaled = rope["rope_type"] != "default"
        return {
            "rope_theta": rope["rope_theta"],
            **({"rope_scaling": {**rope, "type": rope["rope_type"]}} if scaled else {}),
        }
    full, local = rope["full_attention"], rope["sliding_attention"]
    period = next((i + 1 for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"), None)
    older = {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"]}
    if full["rope_type"] != "default":
        older["rope_scaling"] = {"rope_type": full["rope_type"], "factor": full["factor"]}
    return older if period is None else {**older, "sliding_window_pattern": period}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()

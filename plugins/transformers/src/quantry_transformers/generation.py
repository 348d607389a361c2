"""Where generation stops, as transformers' generation config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantry_transformers.config import end_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

    from quantry import Checkpoint

__all__ = ["generation_config"]


def generation_config(
    checkpoint: Checkpoint, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """From `generation_config.json` where there is one, else from the model's configuration; eos is a list.

    A `config.json` that names no eos (mistral.rs writes such) leaves it to the tokenizer, not to a class
    default.
    """
    from transformers import GenerationConfig

    if checkpoint.format.name != "gguf" and checkpoint.source.sibling("generation_config.json") is not None:
        found = GenerationConfig.from_dict(checkpoint.source.read_json("generation_config.json"))
    else:
        found = GenerationConfig.from_model_config(config)
        if checkpoint.format.name != "gguf" and "eos_token_id" not in checkpoint.config:
            found.eos_token_id = tokenizer.eos_token_id
    if checkpoint.format.name == "gguf":
        found.eos_token_id = end_tokens(checkpoint) or None
    elif isinstance(found.eos_token_id, int):
        found.eos_token_id = [found.eos_token_id]
    if found.pad_token_id is None and found.eos_token_id:
        found.pad_token_id = found.eos_token_id[0]  # `generate` needs one for rows that end early
    return found

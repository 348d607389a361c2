"""GGUF metadata as a transformers configuration: no shape is left to a class default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantry import FormatError, UsageError
from quantry_transformers import names, rope
from quantry_transformers.architectures import Architecture, architecture
from quantry_transformers.metadata import Metadata

if TYPE_CHECKING:
    from quantry import Checkpoint

__all__ = ["end_tokens", "hf_config"]

# ends of a turn that chat files may leave unnamed (llama.cpp src/llama-vocab.cpp, special_eog_ids)
_TURN_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"}
)


def hf_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of `config.json` for a GGUF checkpoint.

    Raises UsageError for an unknown architecture, HeaderError naming a key that is missing or impossible.
    """
    arch = architecture(checkpoint.architecture)
    file = str(checkpoint.source.path)
    keys = Metadata(checkpoint.config, f"{checkpoint.architecture}.", file)
    if keys.integer("expert_count", 0, minimum=0):
        raise UsageError(
            f"mixture-of-experts models of architecture {arch.gguf!r} are not supported", file=file
        )
    vocab_size = _rows(checkpoint, "token_embd.weight")
    layers = _layers(keys, checkpoint)
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = _head_dim(keys, hidden, heads, arch)
    config: dict[str, Any] = {
        "model_type": arch.model_type,
        "architectures": [arch.model_class],
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in checkpoint,
        **_special_tokens(checkpoint, vocab_size),
        **arch.constants,
        **_biases(checkpoint, arch),
        **_attention(keys, arch, layers, hidden, heads, head_dim),
        **rope.parameters(checkpoint, keys, arch, head_dim),
    }
    if heads % config["num_key_value_heads"]:
        raise keys.wrong("attention.head_count_kv", f"does not divide the {heads} heads")
    if arch.head_dim_field or head_dim * heads != hidden:
        config["head_dim"] = head_dim
    return config


def end_tokens(checkpoint: Checkpoint) -> list[int]:
    """Ids that end generation: of sequence, turn and message; by name too where there is a chat template."""
    keys = Metadata(checkpoint.config, "tokenizer.ggml.", str(checkpoint.source.path))
    vocab_size = _rows(checkpoint, "token_embd.weight")
    ids = [keys.token(f"{kind}_token_id", vocab_size) for kind in ("eos", "eot", "eom")]
    if "tokenizer.chat_template" in checkpoint.config:
        # few tokens of a large vocabulary are marked: read the types, then those tokens only
        types, tokens = keys.array("token_type", int, ()), keys.array("tokens", str, ())
        ids += [
            i
            for i, kind in enumerate(types)
            if kind in (3, 4) and i < len(tokens) and tokens[i] in _TURN_ENDS
        ]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _rows(checkpoint: Checkpoint, name: str) -> int:
    if name not in checkpoint:
        raise FormatError("is missing", file=checkpoint.source.path, tensor=name)
    shape = checkpoint.entry(name).shape
    if len(shape) != 2:
        raise FormatError(
            f"must be a matrix, has shape {list(shape)}", file=checkpoint.source.path, tensor=name
        )
    return shape[0]


def _layers(keys: Metadata, checkpoint: Checkpoint) -> int:
    # the tensors bound what a lying header can make us build
    stated, found = keys.integer("block_count"), names.block_count(checkpoint.names())
    if stated != found:
        raise keys.wrong("block_count", f"is {stated}, but the file has tensors of {found} layers")
    return stated  # type: ignore[no-any-return]


def _head_dim(keys: Metadata, hidden: int, heads: int, arch: Architecture) -> int:
    head_dim = keys.integer("attention.key_length", None)
    if head_dim is None and arch.interleaved_rope:
        head_dim = keys.integer("rope.dimension_count", None)  # llama files: the whole head is rotated
    if head_dim is None:
        if hidden % heads:
            raise keys.wrong(
                "attention.head_count", f"is {heads}, which does not divide embedding_length {hidden}"
            )
        head_dim = hidden // heads
    value = keys.integer("attention.value_length", head_dim)
    if value != head_dim:
        raise keys.wrong(
            "attention.value_length", f"is {value}, but keys have {head_dim}: no known class holds both"
        )
    return head_dim  # type: ignore[no-any-return]


def _special_tokens(checkpoint: Checkpoint, vocab_size: int) -> dict[str, Any]:
    keys = Metadata(checkpoint.config, "tokenizer.ggml.", str(checkpoint.source.path))
    ends = end_tokens(checkpoint)
    tokens = keys.length("tokens")
    if tokens > vocab_size:
        raise keys.wrong("tokens", f"holds {tokens} tokens, but the embedding has {vocab_size} rows")
    return {
        "bos_token_id": keys.token("bos_token_id", vocab_size),
        "eos_token_id": ends if len(ends) > 1 else (ends[0] if ends else None),
        "pad_token_id": keys.token("padding_token_id", vocab_size),
    }


def _biases(checkpoint: Checkpoint, arch: Architecture) -> dict[str, bool]:
    return {field: f"blk.0.{name}" in checkpoint for field, name in arch.bias_fields.items()}


def _attention(
    keys: Metadata, arch: Architecture, layers: int, hidden: int, heads: int, head_dim: int
) -> dict[str, Any]:
    fields: dict[str, Any] = {name: keys.real(name, default) for name, default in arch.softcaps.items()}
    if arch.attention_scalar:
        fields["query_pre_attn_scalar"] = hidden // heads if layers in arch.hidden_scaled_layers else head_dim
    if arch.sliding != "none":
        fields["sliding_window"] = keys.integer("attention.sliding_window", 0, minimum=0) or None
    if arch.sliding == "pattern":
        fields["layer_types"] = _layer_types(keys, arch, layers, fields["sliding_window"])
    return fields


def _layer_types(keys: Metadata, arch: Architecture, layers: int, window: int | None) -> list[str]:
    stated = keys.raw("attention.sliding_window_pattern", arch.sliding_pattern)
    if isinstance(stated, int) and not isinstance(stated, bool):
        slides = [stated > 0 and (i + 1) % stated != 0 for i in range(layers)]
    else:
        slides = [bool(s) for s in keys.array("attention.sliding_window_pattern", (bool, int))]
        if len(slides) != layers:
            raise keys.wrong(
                "attention.sliding_window_pattern", f"has {len(slides)} entries for {layers} layers"
            )
    return ["sliding_attention" if s and window else "full_attention" for s in slides]

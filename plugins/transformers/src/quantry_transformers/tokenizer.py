"""The tokenizer of a checkpoint, as transformers' class."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from quantry import HeaderError, UsageError
from quantry_transformers import vocabulary
from quantry_transformers.metadata import Metadata
from quantry_transformers.splits import WHOLE_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from quantry import Checkpoint, Source

__all__ = ["PlainTokenizer", "gguf_tokenizer", "load_tokenizer", "trim_heap"]

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_SETTINGS = "tokenizer_config.json"
_PLAIN_CLASSES = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
# of tokenizer_config.json: what tokenizer.json says as well, or what names other files and classes
_NOT_OPTIONS = frozenset(
    {"tokenizer_class", "added_tokens_decoder", "auto_map", "backend", "name_or_path", "tokenizer_file"}
)


class PlainTokenizer(PreTrainedTokenizerFast):
    """PreTrainedTokenizerFast around a given backend, without its copy through JSON (1–3 s for Gemma)."""

    def __init__(self, backend: Tokenizer | None = None, **options: Any) -> None:
        if backend is not None:
            self._tokenizer = backend  # transformers keeps a backend that is already there
        super().__init__(**options)


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer from GGUF metadata, else from the folder's tokenizer files.

    Raises UsageError for a folder without any, HeaderError for GGUF metadata that is wrong or unknown.
    """
    if checkpoint.format.name == "gguf":
        tokenizer = gguf_tokenizer(checkpoint)
        trim_heap()
        return tokenizer
    from transformers import AutoTokenizer

    source = checkpoint.source
    if not any(source.sibling(name) for name in _FILES):
        raise UsageError(
            "has no tokenizer", file=source.root, hint=f"Put the model's {_FILES[0]} beside its weights."
        )
    settings = source.read_json(_SETTINGS) if source.sibling(_SETTINGS) else {}
    # for these AutoTokenizer takes the model type's class, which makes a backend of its own; and it chokes on
    # the nulls that mistral.rs writes
    if source.sibling("tokenizer.json") and settings.get("tokenizer_class") in _PLAIN_CLASSES:
        return _plain_tokenizer(source, settings)
    return AutoTokenizer.from_pretrained(source.root, trust_remote_code=trust_remote_code)


def _plain_tokenizer(source: Source, settings: Mapping[str, Any]) -> PlainTokenizer:
    options = {key: value for key, value in settings.items() if value is not None and key not in _NOT_OPTIONS}
    for key, value in options.items():
        if isinstance(value, dict) and "content" in value:
            options[key] = AddedToken(**{k: v for k, v in value.items() if not k.startswith("__")})
    if source.sibling("chat_template.jinja"):
        options["chat_template"] = (source.root / "chat_template.jinja").read_text(encoding="utf-8")
    try:
        backend = Tokenizer.from_file(str(source.root / "tokenizer.json"))
    except Exception as e:  # tokenizers raises bare Exception
        raise HeaderError(f"is no tokenizer: {e}", file=source.root / "tokenizer.json") from e
    return PlainTokenizer(backend, **options)


def gguf_tokenizer(checkpoint: Checkpoint) -> PlainTokenizer:
    """The tokenizer that a GGUF file's metadata describes."""
    config, file = checkpoint.config, str(checkpoint.source.path)
    keys = Metadata(config, "tokenizer.ggml.", file)
    template = Metadata(config, "tokenizer.", file).text("chat_template", None)
    length = Metadata(config, f"{checkpoint.architecture}.", file).integer("context_length", None)
    options: dict[str, Any] = {"chat_template": template} if template is not None else {}
    if length is not None:
        options["model_max_length"] = length
    tokens = vocabulary.tokens_of(config, file)
    return PlainTokenizer(
        vocabulary.backend_tokenizer(config, checkpoint.architecture, file, tokens),
        # SentencePiece files that say nothing begin with BOS, as do Llama 3's and Tekken's (llama-vocab.cpp)
        add_bos_token=keys.flag(
            "add_bos_token", keys.text("model") == "llama" or keys.text("pre", "") in WHOLE_WORDS
        ),
        add_eos_token=keys.flag("add_eos_token", False),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **vocabulary.special_tokens(config, file, tokens),
        **options,
    )


def trim_heap() -> None:
    """Give the heap's free pages back: 40 MB after Gemma's merges are made, 200 MB when a tokenizer has gone.

    Weights and activations, mapped or large, cannot use them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it, musl does not
        trim(0)

"""A text as chunks of tokens of one length, as llama.cpp's imatrix tool cuts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantry import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextTooShort", "check_chunks", "token_chunks"]

_CHARACTERS = 32  # no vocabulary's tokens are that long on average


class TextTooShort(UsageError):
    """A text does not fill one chunk."""


def check_chunks(chunks: int | None, tokens: int, context: int | None) -> None:
    """Raise UsageError for chunks that cannot be run. context: of the model, None: not known."""
    if chunks is not None and chunks < 1:
        raise UsageError(f"the number of chunks must be at least 1, got {chunks}")
    if tokens < 2:
        raise UsageError(f"a chunk has at least 2 tokens, got {tokens}")
    if context is not None and tokens > context:
        raise UsageError(
            f"chunks of {tokens} tokens are longer than the model's context of {context}",
            hint=f"Take chunks of {context} tokens or fewer.",
        )


def token_chunks(tokenizer: PreTrainedTokenizerBase, text: str, chunks: int | None, tokens: int) -> Tensor:
    """Ids [chunks, tokens]: the text without special tokens, cut; what is left at its end is dropped.

    Where the tokenizer begins a text with BOS, it takes the place of each chunk's first token. chunks: at
    most so many. Raises TextTooShort.
    """
    needed = None if chunks is None else chunks * tokens
    # of a long text only the beginning is read: a cut in it changes tokens near the cut, which are not used
    ids = _ids(tokenizer, text if needed is None else text[: needed * _CHARACTERS])
    if needed is not None and len(ids) < needed < len(text) / _CHARACTERS:
        ids = _ids(tokenizer, text)
    count = len(ids) // tokens if chunks is None else min(chunks, len(ids) // tokens)
    if not count:
        raise TextTooShort(
            f"the text has {len(ids)} tokens, and one chunk needs {tokens}",
            hint="Give a longer text, or shorter chunks.",
        )
    cut = torch.tensor(ids[: count * tokens]).view(count, tokens)
    if _begins_with_bos(tokenizer):
        cut[:, 0] = tokenizer.bos_token_id
    return cut


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos] and _ids(tokenizer, "a")[:1] != [bos]

"""Text to ids: raw, or through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantry import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Conversation", "chat_ids", "has_template", "raw_ids"]


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model came with a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def raw_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text alone, with the BOS that the model wants."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """A conversation and the opening of the answer. Raises UsageError where the template refuses it."""
    import jinja2

    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as e:
        raise UsageError(
            f"the model's chat template refuses the conversation: {e}", hint="--raw leaves it out."
        ) from e
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # templates write their own BOS
    return ids


class Conversation:
    """Turns so far, and the ids of the next prompt. raw: no template, one text that grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, raw: bool) -> None:
        self._tokenizer = tokenizer
        self._raw = raw or not has_template(tokenizer)
        self._messages: list[dict[str, str]] = []
        self._ids: list[int] = []

    def ask(self, text: str) -> list[int]:
        """Ids of everything said, `text` last."""
        if not self._raw:
            self._messages.append({"role": "user", "content": text})
            return chat_ids(self._tokenizer, self._messages)
        if not self._ids:
            self._ids = raw_ids(self._tokenizer, text)
        else:
            self._ids += self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(self._ids)

    def answered(self, text: str, ids: Sequence[int]) -> None:
        """Remember what the model said."""
        self._messages.append({"role": "assistant", "content": text})
        self._ids += ids

"""Token by token: a loop for greedy and simple sampling, text as it becomes readable, and what it cost."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantry import UsageError
from quantry_transformers.decoder import Decoder, why_not

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Generation", "Sampling", "TextStream", "compile_steps"]

_PIECE = 256  # logits
_LONGEST_CHARACTER = 8  # tokens that one unfinished UTF-8 character can span, with room; more is not UTF-8


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. top_k 0 and top_p 1 keep every token. Equal seeds give equal tokens."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise UsageError(f"top-k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must lie in (0, 1], got {self.top_p}")

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> int:
        """One token from logits [V]; temperature, top-k, top-p in the order of transformers' `generate`."""
        if self.temperature == 0:
            return _likeliest(logits)
        scores = logits.float() / self.temperature
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[-1]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p < 1:
            ascending, order = scores.sort()
            drop = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            drop[-1] = False
            scores = scores.masked_fill(drop.scatter(0, order, drop), -torch.inf)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


class Generation:
    """Iterate for the new ids; a stop id is the last one given.

    compiled: steps run as torch.compile made them (`compile_steps`).
    tokens: ids so far. prefill_s, decode_s: seconds of forward passes and choices, for the prompt and for all
    later steps.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompt: Sequence[int],
        count: int,
        sampling: Sampling | None = None,
        stop: Sequence[int] | None = None,
        compiled: bool = False,
    ) -> None:
        if not prompt:
            raise UsageError("the prompt has no tokens")
        if count < 1:
            raise UsageError(f"the number of tokens must be at least 1, got {count}")
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self._model = model
        self._count = count
        self._sampling = sampling or Sampling()
        self._compiled = compiled
        self._stop = frozenset(_stop_ids(model) if stop is None else stop)

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens a second."""
        return len(self.prompt) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """New tokens a second, the first one (part of prefill) left out."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s else 0.0

    @torch.inference_mode()
    def __iter__(self) -> Iterator[int]:
        device = self._model.device
        generator = (
            torch.Generator(device).manual_seed(self._sampling.seed) if self._sampling.temperature else None
        )
        forward = _forward(self._model, len(self.prompt) + self._count, self._compiled)
        start = time.perf_counter()
        logits = forward(torch.tensor(self.prompt, device=device))
        while True:
            token = self._sampling.pick(logits, generator)
            now = time.perf_counter()
            if self.tokens:
                self.decode_s += now - start
            else:
                self.prefill_s = now - start
            self.tokens.append(token)
            yield token
            if token in self._stop or len(self.tokens) >= self._count:
                return
            start = time.perf_counter()
            logits = forward(torch.tensor([token], device=device))


class TextStream:
    """Ids to text, piece by piece; no piece ends within a character. Pieces join to what follows `context`.

    A window of ids, the last piece and what follows it, is decoded at each step: single ids break UTF-8, and
    the first id of a text loses its space.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(context)[-_LONGEST_CHARACTER:]
        self._shown = len(self._window)

    def push(self, token: int) -> str:
        """The text that `token` makes certain, often ""."""
        self._window.append(token)
        return self._piece(final=len(self._window) - self._shown >= _LONGEST_CHARACTER)

    def finish(self) -> str:
        """What is left, an unfinished character as U+FFFD."""
        return self._piece(final=True)

    def _piece(self, final: bool) -> str:
        before, text = self._decode(self._window[: self._shown]), self._decode(self._window)
        if len(text) <= len(before) or (text.endswith("\ufffd") and not final):
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _stop_ids(model: PreTrainedModel) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def compile_steps(model: PreTrainedModel) -> None:
    """Compile what `Generation(…, compiled=True)` runs; the first of them does it else.

    Raises UsageError where the model runs by its own code, or where torch finds no C++ compiler.
    """
    with torch.inference_mode():
        forward = _forward(model, 2, compiled=True)
        for _ in range(2):  # a prompt, a step
            forward(torch.tensor([0]))


def _forward(model: PreTrainedModel, room: int, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Ids [tokens] that follow those given before → logits [vocabulary] after the last one."""
    reason = why_not(model)
    if reason is None and not compiled:
        return Decoder(model, room)
    if compiled:
        if reason is not None:
            raise UsageError(f"cannot compile this model: {reason}", hint="Leave --compile out.")
        from quantry_transformers.compiled import CompiledDecoder

        return CompiledDecoder(model, room)
    from transformers import DynamicCache

    known = inspect.signature(model.forward).parameters
    cache = "cache" if "cache" in known else "past_key_values"
    options: dict[str, Any] = {"use_cache": True, cache: DynamicCache(config=model.config)}
    if "logits_to_keep" in known:
        options["logits_to_keep"] = 1

    def forward(ids: Tensor) -> Tensor:
        # no attention mask: there is no padding, and the mask of ones would only be multiplied in
        logits: Tensor = model(input_ids=ids.unsqueeze(0), **options).logits
        return logits[0, -1]

    return forward


def _likeliest(logits: Tensor) -> int:
    """As `argmax`, the first of the largest; torch vectorizes the largest of each piece, and no argmax."""
    if logits.shape[0] % _PIECE:
        return int(logits.argmax())
    pieces = logits.view(-1, _PIECE)
    row = int(pieces.amax(1).argmax())
    return row * _PIECE + int(pieces[row].argmax())

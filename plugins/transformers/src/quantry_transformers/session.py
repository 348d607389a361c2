"""A loaded model and what one does with it at a terminal: answer a prompt, hold a conversation, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quantry import UsageError, load_model, peak_rss_bytes
from quantry_transformers.generate import Generation, Sampling, TextStream, compile_steps
from quantry_transformers.prompt import Conversation
from quantry_transformers.report import adapters_in_use, kernels_in_use, weights_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answer", "Session", "open_session"]


@dataclass(frozen=True)
class Answer:
    """Generated text, and the generation with its ids and times."""

    text: str
    generation: Generation


@dataclass(frozen=True)
class Session:
    """A model, its tokenizer, and the seconds that loading both took (imports left out)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    load_s: float
    numerics: str
    device: str
    compile_s: float | None = None  # None: not compiled

    def conversation(self, raw: bool) -> Conversation:
        """A new conversation; raw: without the chat template."""
        return Conversation(self.tokenizer, raw)

    def answer(
        self, ids: Sequence[int], count: int, sampling: Sampling, show: Callable[[str], object]
    ) -> Answer:
        """Generate after `ids`; `show` gets each piece of text as it becomes certain.

        Raises UsageError when the prompt alone fills the context.
        """
        limit = self.model.config.get_text_config().max_position_embeddings
        if len(ids) >= limit:
            raise UsageError(f"the prompt has {len(ids)} tokens, the model's context is {limit}")
        compiled = self.compile_s is not None
        generation = Generation(self.model, ids, min(count, limit - len(ids)), sampling, compiled=compiled)
        stream = TextStream(self.tokenizer, ids)
        pieces = []
        for token in generation:
            pieces.append(stream.push(token))
            show(pieces[-1])
        pieces.append(stream.finish())
        show(pieces[-1])
        return Answer("".join(pieces), generation)

    def report(self, answer: Answer) -> dict[str, Any]:
        """The JSON document of `quantry run`."""
        generation = answer.generation
        return {
            "text": answer.text,
            "tokens": generation.tokens,
            "prompt_tokens": len(generation.prompt),
            "load_s": round(self.load_s, 3),
            **({} if self.compile_s is None else {"compile_s": round(self.compile_s, 3)}),
            "prefill_tok_s": round(generation.prefill_tok_s, 2),
            "decode_tok_s": round(generation.decode_tok_s, 2),
            "peak_rss_bytes": peak_rss_bytes(),
            "weights_bytes": weights_bytes(self.model),
            "adapters": adapters_in_use(self.model),
            "kernels": kernels_in_use(self.model),
            "numerics": self.numerics,
            "device": self.device,
        }

    def chat(self, count: int, sampling: Sampling, raw: bool, read: Callable[[], str | None]) -> None:
        """Answer what `read` gives until it gives None; text goes to stdout."""
        conversation = self.conversation(raw)
        while (line := read()) is not None:
            if not line.strip():
                continue
            answer = self.answer(conversation.ask(line), count, sampling, _write)
            conversation.answered(answer.text, answer.generation.tokens)
            _write("\n")


def open_session(
    model: str,
    *,
    device: str,
    numerics: Literal["exact", "strict", "fast"],
    compiled: bool = False,
    **options: Any,
) -> Session:
    """Load `model` as `quantry.load_model` does, compile its steps if asked to, and time both."""
    import transformers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401  the import is not the load

    transformers.logging.set_verbosity_error()
    start = time.perf_counter()
    loaded, tokenizer = load_model(model, device=device, numerics=numerics, **options)
    load_s = time.perf_counter() - start
    compile_s = None
    if compiled:
        start = time.perf_counter()
        compile_steps(loaded)
        compile_s = time.perf_counter() - start
    return Session(loaded, tokenizer, load_s, numerics, device, compile_s)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

"""The `tokenizers` object that a GGUF file's metadata describes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quantry_transformers.metadata import Metadata
from quantry_transformers.splits import SPLITS, WHOLE_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["backend_tokenizer", "merges_of", "no_garbage_collection", "special_tokens", "tokens_of"]

# tokenizer.ggml.token_type (llama.cpp include/llama.h, llama_token_type)
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"
# files whose merge rank is the order of tokens, not their scores (transformers gguf_tokenizer_mapping.py)
_RANKED_BY_ORDER = ("gemma", "gemma2", "gemma3")


def tokens_of(config: Mapping[str, Any], file: str) -> list[str]:
    """Every token of the vocabulary by id, spelled as in the file."""
    return Metadata(config, "tokenizer.ggml.", file).array("tokens", str)


def backend_tokenizer(
    config: Mapping[str, Any], architecture: str | None, file: str, tokens: list[str]
) -> Tokenizer:
    """A tokenizer whose ids are those of llama.cpp and of the original model.

    tokens: as `tokens_of` gives them.
    Raises HeaderError for an unknown tokenizer model or pre-tokenizer: guessing would give wrong ids.
    """
    keys = Metadata(config, "tokenizer.ggml.", file)
    kind = keys.text("model")
    if kind not in ("llama", "gpt2"):
        raise keys.wrong(
            "model", f"is {kind!r}; known are 'llama' (SentencePiece) and 'gpt2' (byte-level BPE)"
        )
    with no_garbage_collection():
        if kind == "gpt2":
            tokenizer = _byte_level(keys, tokens)
        elif architecture in _RANKED_BY_ORDER:  # these files store runs of spaces as spaces
            tokens = [_SPACE * len(t) if len(t) > 1 and not t.strip(" ") else t for t in tokens]
            tokenizer = _sentencepiece(keys, tokens, None)
        else:
            tokenizer = _sentencepiece(keys, tokens, keys.array("scores", float))
        _add_tokens(tokenizer, keys, tokens, byte_level=kind == "gpt2")
    return tokenizer


def special_tokens(config: Mapping[str, Any], file: str, tokens: Sequence[str]) -> dict[str, str]:
    """`bos_token`, `eos_token`, `unk_token`, `pad_token` as the file names them, absent ones left out."""
    keys = Metadata(config, "tokenizer.ggml.", file)
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = keys.token(f"{key}_token_id", len(tokens))
        if token is not None:
            found[f"{name}_token"] = tokens[token]
    return found


def merges_of(tokens: Sequence[str], scores: Sequence[float] | None) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies, best first.

    scores: one per token, higher first; None ranks by token order. Splits of one token: longest left first.

    >>> merges_of(["a", "b", "ab", "aba"], None)
    [('a', 'b'), ('ab', 'a')]
    """
    known = set(tokens)
    if scores is None:
        # one token after the other is already the order of rank
        return [
            (t[:i], t[i:])
            for t in tokens
            for i in range(len(t) - 1, 0, -1)
            if t[:i] in known and t[i:] in known
        ]
    found = [
        (score, i, len(t) - i, t)
        for t, score in zip(tokens, scores, strict=True)
        for i in range(1, len(t))
        if t[:i] in known and t[i:] in known
    ]
    found.sort(key=lambda f: f[:3], reverse=True)  # stable: equal keys stay in token order
    return [(t[:i], t[i:]) for _, i, _, t in found]


def _sentencepiece(keys: Metadata, tokens: list[str], scores: list[float] | None) -> Tokenizer:
    if scores is not None and len(scores) != len(tokens):
        raise keys.wrong("scores", f"has {len(scores)} entries for {len(tokens)} tokens")
    vocab = _ids(keys, tokens)
    unknown = keys.token("unknown_token_id", len(tokens))
    model = models.BPE(
        vocab=vocab,
        merges=_stored_merges(keys, vocab) or merges_of(tokens, scores),
        fuse_unk=True,
        byte_fallback=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    tokenizer = Tokenizer(model)
    to_space = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if keys.flag("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        )
        to_space.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        # words end at a space: the cache of words works, and ids stay the same
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(to_space)
    return tokenizer


def _byte_level(keys: Metadata, tokens: list[str]) -> Tokenizer:
    name = keys.text("pre")
    patterns = SPLITS.get(name)
    if patterns is None:
        raise keys.wrong(
            "pre", f"is {name!r}, a pre-tokenizer that is not known ({', '.join(sorted(SPLITS))})"
        )
    vocab = _ids(keys, [_spell(t) for t in tokens])
    merges = _stored_merges(keys, vocab)
    if merges is None:
        raise keys.wrong("merges", "is missing")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name in WHOLE_WORDS))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, keys: Metadata, tokens: Sequence[str], byte_level: bool) -> None:
    kinds = keys.array("token_type", int, ())
    if kinds and len(kinds) != len(tokens):
        raise keys.wrong("token_type", f"has {len(kinds)} entries for {len(tokens)} tokens")
    marked = [
        (t, kind == _CONTROL)
        for t, kind in zip(tokens, kinds, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    added = [
        AddedToken(t, normalized=False, special=special)
        for t, special in marked
        # in a byte alphabet a marked control outside it is a mislabel: it would grow the vocabulary
        if t and (not byte_level or tokenizer.token_to_id(t) is not None)
    ]
    tokenizer.add_special_tokens([t for t in added if t.special])
    tokenizer.add_tokens([t for t in added if not t.special])


def _ids(keys: Metadata, tokens: Sequence[str]) -> dict[str, int]:
    vocab = {t: i for i, t in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(t for i, t in enumerate(tokens) if vocab[t] != i)
        raise keys.wrong("tokens", f"holds {twice!r} twice")
    return vocab


def _stored_merges(keys: Metadata, vocab: Mapping[str, int]) -> list[tuple[str, str]] | None:
    if "merges" not in keys:
        return None
    merges = []
    for merge in keys.array("merges", str):
        left, space, right = merge.partition(" ")
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise keys.wrong("merges", f"holds {merge!r}, which joins no two tokens of the vocabulary")
        merges.append((left, right))
    return merges


def _spell(token: str) -> str:
    """A token in the byte alphabet; one that is not written in it stands for its UTF-8 bytes."""
    return token if _ALPHABET.issuperset(token) else "".join(_BYTE_CHARS[b] for b in token.encode())


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's alphabet: itself if printable, else from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


_BYTE_CHARS = _byte_alphabet()
_ALPHABET = frozenset(_BYTE_CHARS)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Half a million small tuples without a cycle: collecting while they grow takes 3/4 of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

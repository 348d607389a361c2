"""How a `tokenizer.json` cuts text, in GGUF's terms: its pre-tokenizer's name, its merges, pieces' scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quantry import HeaderError, UsageError
from quantry_transformers.splits import SPLITS, WHOLE_WORDS

__all__ = ["is_byte_level", "merge_lines", "piece_scores", "space_prefix", "split_name"]

_SPACE = "\u2581"
_GPT2 = SPLITS["gpt-2"][0]
# one name for each way of cutting: vocabularies of others give the same ids under it
_NAMES = ("llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o", "gpt-2", "smollm")
# other spellings of the same expression
_SPELLINGS = {
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"(?i:'[sdmt]|'ll|'ve|'re)": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
}


def is_byte_level(backend: Mapping[str, Any], file: str) -> bool:
    """Whether bytes are spelled in GPT-2's alphabet (GGUF's model "gpt2"); else pieces with byte tokens.

    Raises UsageError for vocabularies that are neither.
    """
    model = backend["model"]
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _unknown(f"marks tokens by {option} {model[option]!r}", file)
    if any(step.get("type") == "ByteLevel" for step in _steps(backend.get("pre_tokenizer"), "pretokenizers")):
        return True
    if model.get("byte_fallback"):
        return False
    raise _unknown("neither spells bytes in GPT-2's alphabet nor has byte tokens", file)


def split_name(backend: Mapping[str, Any], file: str) -> str:
    """`tokenizer.ggml.pre` of a byte-level vocabulary. Raises UsageError where GGUF has no name for it."""
    for step in _steps(backend.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":  # llama.cpp does not normalize, its converter lets NFC pass
            raise _unknown(f"normalizes text by {step.get('type')}", file)
    patterns = []
    for step in _steps(backend.get("pre_tokenizer"), "pretokenizers"):
        kind, pattern = step.get("type"), step.get("pattern") or {}
        if (
            kind == "Split"
            and "Regex" in pattern
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
        ):
            patterns.append(_spelled(pattern["Regex"]))
        elif kind == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += [_GPT2] if step.get("use_regex", True) else []
        else:
            raise _unknown(f"cuts text by a step that GGUF has no name for: {step}", file)
    whole = bool(backend["model"].get("ignore_merges"))
    for name in _NAMES:
        if SPLITS[name] == tuple(patterns) and whole == (name in WHOLE_WORDS):
            return name
    how = " that keep whole words" if whole else ""
    raise _unknown(f"cuts text by expressions{how} that GGUF has no name for: {patterns}", file)


def merge_lines(model: Mapping[str, Any], file: str) -> list[str]:
    """`tokenizer.ggml.merges`: "left right" each, best first."""
    return [f"{left} {right}" for left, right in _merges(model, file)]


def space_prefix(backend: Mapping[str, Any], texts: Sequence[str], normal: Sequence[bool], file: str) -> bool:
    """Whether a space is put before the text. Raises UsageError for text that is changed in other ways."""
    prefix = escaped = False
    for step in _steps(backend.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif step.get("type") == "Replace" and _replaces_spaces(step):
            escaped = True
        else:
            raise _unknown(f"normalizes text by a step that GGUF cannot name: {step}", file)
    for step in _steps(backend.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement", _SPACE) == _SPACE:
            escaped = True
            prefix = prefix or step.get("prepend_scheme", "always") != "never"
            inner = (t for t, n in zip(texts, normal, strict=True) if n and _SPACE in t[1:])
            if step.get("split", True) and (crossing := next(inner, None)) is not None:
                raise _unknown(f"cuts words at spaces, but {crossing!r} goes across one", file)
        elif not (escaped and step.get("type") == "Split" and step.get("pattern") == {"String": " "}):
            # after spaces have become U+2581 a cut at spaces does nothing
            raise _unknown(f"cuts text by a step that GGUF cannot name: {step}", file)
    if not escaped:
        raise _unknown("does not write spaces as U+2581", file)
    return prefix


def piece_scores(
    model: Mapping[str, Any], texts: Sequence[str], normal: Sequence[bool], file: str
) -> np.ndarray:
    """Scores float32 [tokens] by which llama.cpp joins pieces in the order of the merges; the best is 0.

    normal: which tokens are pieces. Where tokens lie in the order of their merges, as SentencePiece writes
    them, these are its scores: 0, -1, -2 … by id.
    Raises UsageError where pieces could be joined that the merges leave apart: their ids would differ.
    """
    ids = {text: i for i, (text, is_piece) in enumerate(zip(texts, normal, strict=True)) if is_piece}
    merges = dict.fromkeys(
        pair
        for pair in _merges(model, file)
        if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids
    )
    possible = sum(
        1 for text in ids for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids
    )
    if possible != len(merges):
        left, right = _unlisted(ids, merges)
        raise _unknown(
            f"leaves {possible - len(merges)} pairs of tokens apart that make a token, such as {left!r} with"
            f" {right!r}: GGUF joins every such pair",
            file,
        )
    order = list(dict.fromkeys(ids[left + right] for left, right in merges))
    if order != sorted(order):
        merged = set(order)
        order += [i for i in ids.values() if i not in merged]
    else:
        order = list(ids.values())
    scores = np.zeros(len(texts), np.float32)
    scores[order] = -np.arange(len(order), dtype=np.float32)  # exact below 2^24
    return scores


def _merges(model: Mapping[str, Any], file: str) -> Iterator[tuple[str, str]]:
    for merge in model.get("merges") or ():
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise HeaderError(f"has a merge that is no pair of tokens: {merge!r}", file=file)
        yield pair[0], pair[1]


def _unlisted(ids: Mapping[str, int], merges: Mapping[tuple[str, str], None]) -> tuple[str, str]:
    return next(
        (text[:cut], text[cut:])
        for text in ids
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids and (text[:cut], text[cut:]) not in merges
    )


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences opened."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [found for part in step.get(inner, ()) for found in _steps(part, inner)]


def _replaces_spaces(step: Mapping[str, Any]) -> bool:
    return step.get("pattern") == {"String": " "} and step.get("content") == _SPACE


def _spelled(pattern: str) -> str:
    for theirs, ours in _SPELLINGS.items():
        pattern = pattern.replace(theirs, ours)
    return pattern


def _unknown(what: str, file: str) -> UsageError:
    return UsageError(what, file=file, hint="Written as GGUF, this tokenizer would give other ids.")

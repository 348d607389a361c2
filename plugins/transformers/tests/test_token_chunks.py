"""How a text becomes chunks of tokens: as llama.cpp's imatrix tool cuts it."""

from __future__ import annotations

from typing import Any

import pytest

import quantry
from quantry_transformers.token_chunks import TextTooShort, check_chunks, token_chunks
from quantry_transformers.tokenizer import load_tokenizer

TEXT = "the theory of the other hat. a cat and the rest of them. " * 6


@pytest.fixture(scope="module")
def tokenizer(tiny: Any) -> Any:
    return load_tokenizer(quantry.open(tiny("llama").path))


def test_chunks_are_pieces_of_the_whole_text_with_bos_in_the_first_place(tokenizer: Any) -> None:
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = token_chunks(tokenizer, TEXT, None, 16)
    assert found.shape == (len(whole) // 16, 16)
    for i, chunk in enumerate(found.tolist()):
        assert chunk[0] == tokenizer.bos_token_id
        assert chunk[1:] == whole[16 * i + 1 : 16 * i + 16]


def test_a_tokenizer_without_bos_leaves_the_first_token(tiny: Any) -> None:
    path = tiny("llama", edit=lambda writer, tensors: writer.add_add_bos_token(False)).path
    plain = load_tokenizer(quantry.open(path))
    whole = plain(TEXT, add_special_tokens=False)["input_ids"]
    assert token_chunks(plain, TEXT, 1, 16).tolist() == [whole[:16]]


@pytest.mark.parametrize("repeat", [1, 300])
def test_of_a_longer_text_the_first_chunks_are_those_of_the_whole(tokenizer: Any, repeat: int) -> None:
    whole = token_chunks(tokenizer, TEXT * repeat, None, 16)
    assert token_chunks(tokenizer, TEXT * repeat, 3, 16).tolist() == whole[:3].tolist()


def test_words_that_are_one_token_each_do_not_make_a_long_text_short(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantry_transformers.token_chunks._CHARACTERS", 1)  # a beginning that gives too few
    assert (
        token_chunks(tokenizer, TEXT, 3, 16).tolist() == token_chunks(tokenizer, TEXT, None, 16)[:3].tolist()
    )


@pytest.mark.parametrize("text", ["", "the cat"])
def test_a_text_that_does_not_fill_a_chunk_is_refused(tokenizer: Any, text: str) -> None:
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    with pytest.raises(TextTooShort, match=f"has {tokens} tokens, and one chunk needs 64"):
        token_chunks(tokenizer, text, None, 64)


@pytest.mark.parametrize(
    ("chunks", "tokens", "context", "said"),
    [
        (0, 16, None, "number of chunks must be at least 1"),
        (None, 1, None, "at least 2 tokens"),
        (None, 65, 64, "chunks of 65 tokens are longer than the model's context of 64"),
    ],
)
def test_chunks_that_cannot_be_run_are_refused(
    chunks: int | None, tokens: int, context: int | None, said: str
) -> None:
    with pytest.raises(quantry.UsageError, match=said):
        check_chunks(chunks, tokens, context)

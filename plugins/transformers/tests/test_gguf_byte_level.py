"""Byte-level vocabularies as GGUF: the name says how they cut text, ids are the same in llama.cpp."""

from __future__ import annotations

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from quantry_transformers.gguf_vocabulary import tokenizer_keys
from quantry_transformers.splits import SPLITS

# as Llama 3's, Qwen's, Tekken's and o200k's tokenizer.json spell them
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASED = CL100K.replace(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bytes_last(*steps, regex=False):
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
    )


BYTE_LEVEL = {
    "llama-bpe": (bytes_last(split(CL100K)), True),
    "dbrx": (bytes_last(split(CASED)), False),
    "qwen2": (bytes_last(split(CL100K.replace("{1,3}", ""))), False),
    "tekken": (bytes_last(split(SPLITS["tekken"][0])), True),
    "gpt-4o": (bytes_last(split(SPLITS["gpt-4o"][0])), False),
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (bytes_last(pre_tokenizers.Digits(individual_digits=True), regex=True), False),
}


def trained(pre, gguf_corpus):
    step, whole = BYTE_LEVEL[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = step
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|end|>"], show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(gguf_corpus * 4, trainer)
    return tokenizer


@pytest.mark.parametrize("pre", sorted(BYTE_LEVEL))
def test_byte_level_vocabularies_are_named_by_how_they_cut(tokenizer_folder, gguf_corpus, pre):
    tokenizer = trained(pre, gguf_corpus)
    state = json.loads(tokenizer.to_str())
    vocab = tokenizer.get_vocab()
    keys = tokenizer_keys(tokenizer_folder(state), {}, len(vocab))
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == pre
    assert keys["tokenizer.ggml.tokens"] == sorted(vocab, key=vocab.__getitem__)
    assert keys["tokenizer.ggml.merges"] == [" ".join(m) for m in state["model"]["merges"]]
    assert keys["tokenizer.ggml.token_type"].tolist() == [3] + [1] * (len(vocab) - 1)


@pytest.mark.peer("llama_cpp")
@pytest.mark.parametrize("pre", sorted(BYTE_LEVEL))
def test_byte_level_ids_are_equal_in_llama_cpp(tokenizer_folder, llama_cpp_ids, gguf_corpus, gguf_texts, pre):
    tokenizer = trained(pre, gguf_corpus)
    ids = llama_cpp_ids(tokenizer_keys(tokenizer_folder(tokenizer.to_str()), {}, tokenizer.get_vocab_size()))
    for text in gguf_texts:
        assert ids(text) == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("pre", ["qwen2", "dbrx", "gpt-4o"])
def test_byte_level_ids_are_equal_in_transformers(
    tokenizer_folder, read_by_transformers, gguf_corpus, gguf_texts, pre
):
    tokenizer = trained(pre, gguf_corpus)
    read = read_by_transformers(
        tokenizer_keys(tokenizer_folder(tokenizer.to_str()), {}, tokenizer.get_vocab_size()), "qwen2"
    )
    for text in gguf_texts:
        assert read.encode(text).ids == tokenizer.encode(text).ids, text

"""Ids from GGUF metadata, against transformers' conversion and llama.cpp's algorithm written out here."""

from __future__ import annotations

import gc
import heapq
import random

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import quantry
from quantry_transformers import vocabulary
from quantry_transformers.splits import SPLITS
from quantry_transformers.tokenizer import PlainTokenizer, gguf_tokenizer

SPACE = "\u2581"
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock, isn't it?",
    "Naïve café: Ünïcödé — 你好世界 🙂 and\ttabs\n\n  two lines, CamelCaseWords HTTPServer.",
    "def f(x):\n    return x ** 2  # comment\n" * 3,
    "the theory of the thing that they then thought through",
]


def backend(meta: dict, architecture: str, file: str = "x.gguf") -> Tokenizer:
    tokens = vocabulary.tokens_of(meta, file)
    return vocabulary.backend_tokenizer(meta, architecture, file, tokens)


def texts(seed: int, count: int = 520) -> list[str]:
    """Words of the corpus, random Unicode, controls, spaces, the empty text."""
    rng = random.Random(seed)
    words = " ".join(CORPUS).split(" ")
    found = ["", " ", "  a", "a  b   c", "\x00\x01", "\n\n\n", "🙂🙂", "I'LL we're", "123456 78"]
    while len(found) < count:
        kind = rng.randrange(3)
        if kind == 0:
            found.append(" ".join(rng.choices(words, k=rng.randrange(1, 12))))
        elif kind == 1:
            found.append(
                "".join(
                    chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0x2FFF)])) for _ in range(20)
                )
            )
        else:
            found.append("".join(rng.choices([*"abc the .,\n\t ", "é", "你", "\U0001f642"], k=30)))
    return found


def byte_level(pre: str) -> tuple[dict, Tokenizer]:
    """Metadata of a vocabulary that `tokenizers` trained, and the trained tokenizer."""
    trained = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), "isolated") for p in SPLITS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    trained.train_from_iterator(CORPUS * 4, trainer)
    state = trained.get_vocab()
    tokens = sorted(state, key=state.get)
    import json

    merges = [" ".join(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    meta = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3 if t == "<|end|>" else 1 for t in tokens],
        "tokenizer.ggml.eos_token_id": 0,
    }
    return meta, trained


def sentencepiece() -> dict:
    """Metadata of a small SentencePiece vocabulary whose scores are not the order of its tokens."""
    pieces = {SPACE, *"".join(CORPUS).lower().replace(" ", "").replace("\n", "").replace("\t", "")}
    for word in " ".join(CORPUS).lower().split():
        for n in range(2, 7):
            pieces.add((SPACE + word)[:n])
            pieces.add(word[-n:])
    ordered = sorted(p for p in pieces if p)
    random.Random(3).shuffle(ordered)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *ordered, "<user>"]
    scores = [0.0] * 259 + [-float(len(p) * 1000 + i) for i, p in enumerate(ordered)] + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(ordered) + [4],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama_cpp_spm(meta: dict, text: str) -> list[int]:
    """llm_tokenizer_spm_session of src/llama-vocab.cpp: join the pair of the best score, leftmost first."""
    tokens, scores = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.scores"]
    ids = {t: i for i, t in enumerate(tokens)}
    if not text:
        return []
    parts: list[str | None] = list((" " + text).replace(" ", SPACE))
    after = [*range(1, len(parts)), -1]
    before = list(range(-1, len(parts) - 1))
    queue: list = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and parts[left] + parts[right] in ids:
            pair = parts[left] + parts[right]
            heapq.heappush(queue, (-scores[ids[pair]], left, right, pair))

    for i in range(len(parts) - 1):
        offer(i, i + 1)
    while queue:
        _, left, right, pair = heapq.heappop(queue)
        if (
            parts[left] is None
            or parts[right] is None
            or parts[left] + parts[right] != pair
            or after[left] != right
        ):
            continue
        parts[left], parts[right] = pair, None
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    found = []
    for part in (p for p in parts if p is not None):
        found += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return found


def theirs(meta: dict, architecture: str):
    """transformers' conversion of the same metadata."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    keys = GGUF_TOKENIZER_MAPPING["tokenizer"]
    fields = {name: meta[f"tokenizer.{key}"] for key, name in keys.items() if f"tokenizer.{key}" in meta}
    return convert_gguf_tokenizer(architecture, fields)[0]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx", "gpt-2", "smollm"])
def test_byte_level_ids_equal_the_trained_tokenizer(pre):
    meta, trained = byte_level(pre)
    ours = backend(meta, "llama")
    for text in texts(1):
        assert ours.encode(text, add_special_tokens=False).ids == trained.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids) == text


@pytest.mark.parametrize("pre", ["qwen2", "dbrx", "gpt-4o"])
def test_byte_level_ids_equal_transformers(pre):
    meta, _ = byte_level(pre)
    ours, reference = backend(meta, "qwen2"), theirs(meta, "qwen2")
    for text in texts(2):
        assert ours.encode(text).ids == reference.encode(text, add_special_tokens=False).ids, text


def test_sentencepiece_ids_equal_llama_cpp():
    meta = sentencepiece()
    ours = backend(meta, "llama")
    for text in texts(3):
        assert ours.encode(text).ids == llama_cpp_spm(meta, text), text


def test_sentencepiece_ids_equal_transformers_behind_a_letter():
    """transformers' LlamaTokenizer adds no space to a text that begins with one; SentencePiece does."""
    meta = sentencepiece()
    ours, reference = backend(meta, "llama"), theirs(meta, "llama")
    for text in (t for t in texts(4) if t and t[0] not in " " + SPACE):
        assert ours.encode(text).ids == reference.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("architecture", ["phi3", "gemma3"])
def test_sentencepiece_variants_equal_transformers(architecture):
    meta = {**sentencepiece(), "tokenizer.ggml.add_space_prefix": architecture == "phi3"}
    ours, reference = backend(meta, architecture), theirs(meta, architecture)
    for text in texts(5):
        assert ours.encode(text).ids == reference.encode(text, add_special_tokens=False).ids, text


def test_added_tokens_stay_whole():
    """A word begins anew behind an added token, as in llama.cpp: hence the space before b."""
    tokenizer = backend(sentencepiece(), "llama")
    ids = tokenizer.encode("a<user>b</s>").ids
    assert ids.count(tokenizer.token_to_id("<user>")) == 1
    assert tokenizer.token_to_id("</s>") in ids
    assert tokenizer.decode(ids) == "a<user> b"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"tokenizer.ggml.pre": "nobody-knows"}, "pre"),
        ({"tokenizer.ggml.pre": "default"}, "pre"),
        ({"tokenizer.ggml.model": "bert"}, "model"),
        ({"tokenizer.ggml.merges": ["nospace"]}, "merges"),
        ({"tokenizer.ggml.merges": ["qqq zzz"]}, "merges"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.merges": []}, "tokens"),
    ],
)
def test_wrong_metadata_is_refused_by_key(change, key):
    meta = {**byte_level("qwen2")[0], **change}
    with pytest.raises(quantry.HeaderError, match=f"tokenizer.ggml.{key}") as caught:
        backend(meta, "qwen2")
    assert caught.value.file == "x.gguf"


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before(enabled):
    meta = {**byte_level("qwen2")[0], "tokenizer.ggml.pre": "nobody-knows"}
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(quantry.HeaderError):
            backend(meta, "qwen2")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_bos_is_added_where_the_file_is_silent(tiny):
    tokenizer = gguf_tokenizer(quantry.open(tiny("llama").path))
    assert isinstance(tokenizer, PlainTokenizer)
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id == 1


def test_chat_template_comes_from_the_file(tiny):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    made = tiny("llama", edit=lambda writer, tensors: writer.add_chat_template(template))
    tokenizer = gguf_tokenizer(quantry.open(made.path))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"

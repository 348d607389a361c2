"""Fixtures of the tests that write GGUF: folders, small vocabularies, and who else reads what is written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

import quantry

VOCAB = 96  # as conftest's tiny models have

GGUF_CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock, isn't it?",
    "Naïve café: Ünïcödé — 你好世界 🙂 and\ttabs\n\n  two lines, CamelCaseWords HTTPServer.",
    "def f(x):\n    return x ** 2  # comment\n" * 3,
    "the theory of the thing that they then thought through",
]


@pytest.fixture(scope="session")
def write_exported() -> Callable[[Any, Path], Path]:
    """write_exported(exported, path): what `export_as` gives, dense, by the `gguf` package's writer."""
    return _write_exported


def _write_exported(exported: Any, path: Path) -> Path:
    writer = gguf.GGUFWriter(path, exported.config["general.architecture"])
    for key, value in exported.config.items():
        if key == "general.architecture":
            continue  # written by the writer itself
        if isinstance(value, np.ndarray):
            kinds = {
                "f": gguf.GGUFValueType.FLOAT32,
                "i": gguf.GGUFValueType.INT32,
                "b": gguf.GGUFValueType.BOOL,
            }
            kind = kinds[value.dtype.kind]
            writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, sub_type=kind)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {
                bool: gguf.GGUFValueType.BOOL,
                int: gguf.GGUFValueType.UINT32,
                float: gguf.GGUFValueType.FLOAT32,
                str: gguf.GGUFValueType.STRING,
            }
            writer.add_key_value(key, value, kinds[type(value)])
    for entry in exported.weights.entries():
        writer.add_tensor(entry.name, exported.weights.load(entry.name).dequantize().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_folder(model, vocabulary=None): a folder as `save_pretrained` writes it, with a tokenizer.

    vocabulary: content of tokenizer.json; None: characters and a few words, Gemma's way.
    """

    def make(model: Any, vocabulary: dict[str, Any] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("folder")
        model.save_pretrained(folder)
        settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary or piece_vocabulary()))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


def piece_vocabulary() -> dict[str, Any]:
    """A tokenizer.json of 96 tokens: three special ones, characters, a few words, byte tokens."""
    words = ["th", "he", "the", "\u2581t", "\u2581th", "\u2581the", "\u2581a", "an", "and"]
    pieces = [*words, "\u2581", *"abcdefghijklmnopqrstuvwxyz.,0123456789"]
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *pieces, *(f"<0x{b:02X}>" for b in range(VOCAB - len(special) - len(pieces)))]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    known = set(pieces)
    merges = [
        [word[:cut], word[cut:]]
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in known and word[cut:] in known
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": t, "special": True, **plain}
            for i, t in enumerate(special)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip


@pytest.fixture(scope="session")
def gguf_corpus() -> list[str]:
    """What small vocabularies are made of."""
    return list(GGUF_CORPUS)


@pytest.fixture(scope="session")
def gguf_texts() -> list[str]:
    """Words of the corpus, spaces, controls, special tokens, other scripts, the empty text."""
    rng = random.Random(5)
    words = " ".join(GGUF_CORPUS).split(" ")
    found = [
        "",
        "  two  spaces ",
        "<s>a</s>",
        "x<user>y z",
        "x<|end|>y",
        "a\u00a0b",
        "\t\n\n x",
        "naïve 你好 🙂",
    ]
    found += [" a", "a  b   c", "\n\n\n", "🙂🙂", "I'LL we're", "123456 78"]
    while len(found) < 300:
        if len(found) % 2:
            found.append(" ".join(rng.choices(words, k=rng.randrange(1, 12))))
        else:
            found.append("".join(rng.choices([*"abc the .,\n\t 12", "é", "你", "\U0001f642"], k=30)))
    return found


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Callable[..., quantry.Source]:
    """tokenizer_folder(tokenizer.json, **tokenizer_config): a folder of these two files."""

    def make(vocabulary: Any, **settings: Any) -> quantry.Source:
        text = vocabulary if isinstance(vocabulary, str) else json.dumps(vocabulary)
        (tmp_path / "tokenizer.json").write_text(text)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return quantry.Source(tmp_path)

    return make


@pytest.fixture(scope="session")
def read_by_transformers() -> Callable[[dict[str, Any], str], Any]:
    """read_by_transformers(keys, architecture): transformers' own tokenizer of GGUF key-values."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

    def make(keys: dict[str, Any], architecture: str) -> Any:
        fields = {}
        for key, name in mapping.GGUF_TOKENIZER_MAPPING["tokenizer"].items():
            if (value := keys.get(f"tokenizer.{key}")) is not None:
                fields[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return mapping.convert_gguf_tokenizer(architecture, fields)[0]

    return make


@pytest.fixture
def llama_cpp_ids(write_exported: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """llama_cpp_ids(keys): text → ids in llama.cpp, special tokens found, none added."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="`make peers` builds llama-cpp-python")

    def make(keys: dict[str, Any]) -> Callable[[str], list[int]]:
        weights: Any = SimpleNamespace(entries=list)
        exported = quantry.Exported({"general.architecture": "llama", **keys}, weights, {})
        path = write_exported(exported, tmp_path / "vocabulary.gguf")
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)

    return make

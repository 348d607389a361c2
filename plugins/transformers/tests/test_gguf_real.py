"""Gemma 3 270M: GGUF → UQFF folder → GGUF is the file again, but for what a folder does not say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import quantry

pytestmark = pytest.mark.slow
EPS = torch.finfo(torch.float32).eps
# what people wrote about the model, which a folder of weights does not repeat
ABOUT = {"general.basename", "general.size_label", "general.license", "general.tags", "general.name"}
# how its tensors are stored: the writer's to say
STORED = {"general.quantization_version", "general.file_type"}
# says no more than that nothing is added between two texts
DEFAULTS = {"tokenizer.ggml.add_sep_token"}

TEXTS = [
    "Hello world",
    "  two   runs    of spaces ",
    "tab\tand\n\n\nlines",
    "naïve café, Ünïcödé — 你好世界",
    "🙂🙂 👩\u200d👩\u200d👧",
    "1234567 3.14 0x1F",
    "<start_of_turn>user\nhi<end_of_turn>",
    "<unused5>x<mask>",
    "I'LL we're isn't",
    "def f(x):\n    return x",
    "\u00a0\u2028\x00",
    "a" * 40,
    "",
]


def runtime():
    (found,) = (r for r in quantry.registry().runtimes if "gguf" in r.conventions)
    return found


@pytest.fixture(scope="module")
def original(gemma_path):
    return quantry.open(gemma_path)


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    config, weights, files = runtime().export(original)
    quantry.save_uqff(folder / "g.uqff", weights, config=config, files=files)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    return runtime().export_as(quantry.open(folder), "gguf")


def test_key_values_are_the_files(original, exported):
    scores = "tokenizer.ggml.scores"
    for key, value in original.config.items():
        if key not in ABOUT | STORED | DEFAULTS | {scores}:
            found = exported.config[key]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == value, key
    # written by newer converters; llama.cpp and the original file mean 10,000 where it is absent
    assert set(exported.config) - set(original.config) == {"gemma3.rope.freq_base_swa"}
    assert exported.config["gemma3.rope.freq_base_swa"] == 10_000.0


def test_scores_are_the_files_for_every_piece_that_is_merged_from_others(original, exported):
    """Single characters come last in both; there the file counts 31 runs of spaces that are no pieces."""
    kinds = np.array(original.config["tokenizer.ggml.token_type"])
    theirs = np.array(original.config["tokenizer.ggml.scores"], np.float32)
    found = exported.config["tokenizer.ggml.scores"]
    lengths = np.array([len(token) for token in original.config["tokenizer.ggml.tokens"]])
    merged = (kinds == 1) & (lengths > 1)
    assert merged.sum() > 200_000
    assert np.array_equal(found[merged & (theirs > -236_250)], theirs[merged & (theirs > -236_250)])
    assert np.array_equal(found[kinds != 1], np.where(kinds[kinds != 1] == 6, 0.0, -1000.0))
    pieces = kinds == 1
    assert np.array_equal(
        np.argsort(-found[pieces], kind="stable"), np.argsort(-theirs[pieces], kind="stable")
    )


def test_tensors_are_the_files(original, exported):
    entries = {entry.name: entry for entry in exported.weights.entries()}
    assert set(entries) == set(original.names())
    for name in original.names():
        ours, theirs = exported.weights.load(name), original[name]
        assert (entries[name].layout, entries[name].shape) == (theirs.layout, theirs.shape)
        if theirs.layout.family == "dense":  # norms lose the 1 and get it again
            assert torch.allclose(ours.dequantize(), theirs.dequantize(), rtol=0, atol=EPS), name
        else:
            assert torch.equal(ours.buffers["blocks"], theirs.buffers["blocks"]), name


@pytest.mark.peer("llama_cpp")
def test_ids_in_llama_cpp_are_those_of_the_file_and_of_the_folder(
    exported, folder, gemma_path, write_exported, tmp_path
):
    llama_cpp = pytest.importorskip("llama_cpp", reason="`make peers` builds llama-cpp-python")
    weights = SimpleNamespace(entries=list)
    path = write_exported(exported._replace(weights=weights), tmp_path / "vocabulary.gguf")
    ours, file = (llama_cpp.Llama(str(p), vocab_only=True, verbose=False) for p in (path, gemma_path))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = ours.tokenize(text.encode(), add_bos=True, special=True)
        assert ids == file.tokenize(text.encode(), add_bos=True, special=True), text
        assert ids == tokenizer.encode(text).ids, text

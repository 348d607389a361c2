"""The loop gives what transformers' `generate` gives; text comes in whole characters."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

import quantry
from quantry_transformers.generate import Generation, Sampling, TextStream
from quantry_transformers.tokenizer import PlainTokenizer


@pytest.fixture(scope="module")
def models_by_arch(tiny):
    made = {}

    def get(arch):
        if arch not in made:
            model, _ = quantry.load_model(tiny(arch).path, numerics="exact", reference=True)
            model.generation_config.eos_token_id = None
            made[arch] = model
        return made[arch]

    return get


def generated(model, prompt, count, **options):
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("arch", ["llama", "gemma2", "gemma3"])
def test_greedy_equals_generate(models_by_arch, arch, length):
    """Gemma's window is 8: prompts below, at and above it."""
    model = models_by_arch(arch)
    prompt = [3 + i % 90 for i in range(length)]
    assert list(Generation(model, prompt, 12)) == generated(model, prompt, 12, do_sample=False)


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 1.0), (5, 1.0), (0, 0.7), (20, 0.9), (1000, 0.01)],
)
def test_seeded_sampling_equals_generate(models_by_arch, top_k, top_p):
    model = models_by_arch("qwen3")
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p, seed=7)
    torch.manual_seed(7)
    expected = generated(model, [5, 6, 7], 16, do_sample=True, temperature=0.8, top_k=top_k, top_p=top_p)
    assert list(Generation(model, [5, 6, 7], 16, sampling)) == expected


def test_equal_seeds_give_equal_tokens_and_leave_the_global_state(models_by_arch):
    model = models_by_arch("llama")
    before = torch.get_rng_state()
    first = list(Generation(model, [5, 6], 8, Sampling(1.0, seed=3)))
    assert first == list(Generation(model, [5, 6], 8, Sampling(1.0, seed=3)))
    assert first != list(Generation(model, [5, 6], 8, Sampling(1.0, seed=4)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_stop_id_is_the_last(models_by_arch):
    model = models_by_arch("llama")
    free = list(Generation(model, [5, 6], 10))
    stopped = Generation(model, [5, 6], 10, stop=[free[3]])
    assert list(stopped) == free[: free.index(free[3]) + 1] == stopped.tokens


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1024, 262_144])
def test_greedy_takes_the_first_of_equals(size):
    logits = torch.randint(0, 5, (size,), generator=torch.Generator().manual_seed(size)).float()
    assert Sampling().pick(logits, None) == logits.tolist().index(logits.max().item())


def test_times_count_prompt_and_later_tokens(models_by_arch):
    generation = Generation(models_by_arch("llama"), [5, 6, 7], 4)
    list(generation)
    assert generation.prefill_tok_s == pytest.approx(3 / generation.prefill_s)
    assert generation.decode_tok_s == pytest.approx(3 / generation.decode_s)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(quantry.UsageError):
        Sampling(**wrong)


def test_an_empty_prompt_is_refused(models_by_arch):
    with pytest.raises(quantry.UsageError, match="no tokens"):
        Generation(models_by_arch("llama"), [], 4)


@pytest.fixture(scope="module")
def spm():
    """Bytes, letters and words; the first space of a text is dropped, as SentencePiece does."""
    tokens = [
        "<unk>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "\u2581",
        "\u2581the",
        "a",
        "\u2581a",
        "é",
    ]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["</s>"])
    return PlainTokenizer(backend, eos_token="</s>")


def byte_ids(text):
    return [2 + b for b in text.encode()]


@pytest.mark.parametrize("text", ["é", "你好 🙂 ok", "🙂🙂", "a🙂", "\u0301x"])
def test_pieces_hold_whole_characters_and_join_to_the_text(spm, text):
    stream = TextStream(spm)
    pieces = [stream.push(i) for i in byte_ids(text)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces)


def test_pieces_join_to_the_full_decode(spm):
    ids = [258 + i % 5 for i in range(40)] + byte_ids("ü") + [259, 1, 260]
    stream = TextStream(spm)
    text = "".join(stream.push(i) for i in ids) + stream.finish()
    assert text == spm.decode(ids, skip_special_tokens=True)


def test_a_continuation_keeps_its_space(spm):
    stream = TextStream(spm, context=[261])
    assert stream.push(259) + stream.finish() == " the"


def test_an_unfinished_character_comes_at_the_end(spm):
    stream = TextStream(spm)
    assert [stream.push(i) for i in byte_ids("🙂")[:2]] == ["", ""]
    assert stream.finish() == "\ufffd\ufffd"


def test_bytes_that_are_no_text_do_not_wait_for_ever(spm):
    stream = TextStream(spm)
    assert any(stream.push(2 + 0xFF) for _ in range(12))

"""`quantry run`: keys, text, exit codes, conversation."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import quantry
from quantry.cli import cli
from quantry_transformers.prompt import Conversation

KEYS = {
    "text", "tokens", "prompt_tokens", "load_s", "prefill_tok_s", "decode_tok_s", "peak_rss_bytes",
    "weights_bytes", "kernels",
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def run(*arguments, stdin=None):
    return CliRunner().invoke(cli, ["run", *map(str, arguments), "--reference"], input=stdin)


def test_json_has_the_keys_of_the_contract(tiny):
    result = run(tiny("llama").path, "-p", "the theory", "-n", 5, "--numerics", "exact", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document) >= KEYS
    assert len(document["tokens"]) <= 5
    assert document["prompt_tokens"] == 6  # <s> the ▁the o r y
    assert document["peak_rss_bytes"] > document["weights_bytes"] > 0
    assert sum(document["kernels"].values()) == 2 * 7 + 2


def test_stdout_is_the_text_and_nothing_else(tiny):
    arguments = (tiny("llama").path, "-p", "the", "-n", 6, "--numerics", "exact")
    expected = json.loads(run(*arguments, "--json").stdout)["text"]
    result = run(*arguments)
    assert result.stdout == expected + "\n"
    assert "tok/s" in result.stderr


def test_tokens_equal_greedy_generate(tiny):
    import torch

    made = tiny("qwen3")
    document = json.loads(run(made.path, "-p", "the", "-n", 6, "--numerics", "exact", "--json").stdout)
    _, tokenizer = quantry.load_model(made.path, numerics="exact", reference=True)
    ids = torch.tensor([tokenizer("the")["input_ids"]])
    found = made.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert document["tokens"] == found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "-p TEXT"),
        (["-p", "x", "-i"], 2, "-p TEXT"),
        (["-i", "--json"], 2, "-p TEXT"),
        (["-p", "x", "--adapter", "lora"], 2, "does not exist"),
        (["-p", "x", "--temperature", "-1"], 2, "temperature"),
        (["-p", "x", "-n", "0"], 2, "-n"),
        (["-p", "x", "--numerics", "sloppy"], 2, "numerics"),
        (["-p", "a" * 400], 2, "context"),
    ],
)
def test_wrong_usage_says_so(tiny, arguments, code, said):
    result = run(tiny("llama").path, *arguments)
    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_unknown_model_is_exit_2(tmp_path):
    assert run(tmp_path / "nothing.gguf", "-p", "x").exit_code == 2


def test_conversation_ends_at_exit_and_at_the_end_of_input(tiny):
    for stdin in ("the\n\nthe dog\n/exit\nnever\n", "the\nthe dog\n"):
        result = run(tiny("llama").path, "-i", "-n", 3, stdin=stdin)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("\n") == 2


@pytest.fixture
def chatty(tiny):
    made = tiny("llama", edit=lambda writer, tensors: writer.add_chat_template(TEMPLATE))
    return quantry.load_model(made.path, numerics="exact", reference=True)[1]


def test_a_template_is_applied_with_its_history(chatty):
    talk = Conversation(chatty, raw=False)
    assert chatty.decode(talk.ask("hi")) == "uhi.a"
    talk.answered("yo", [5])
    assert chatty.decode(talk.ask("so")) == "uhi.ayo.uso.a"


def test_raw_keeps_one_growing_text(chatty):
    talk = Conversation(chatty, raw=True)
    first = talk.ask("hi")
    assert chatty.decode(first, skip_special_tokens=True) == "hi"
    talk.answered("x", [40])
    assert talk.ask("so")[: len(first) + 1] == [*first, 40]


def test_a_template_that_refuses_is_an_error(tiny):
    made = tiny("llama", edit=lambda w, t: w.add_chat_template("{{ raise_exception('no') }}"))
    tokenizer = quantry.load_model(made.path, numerics="exact", reference=True)[1]
    with pytest.raises(quantry.UsageError, match="refuses"):
        Conversation(tokenizer, raw=False).ask("x")

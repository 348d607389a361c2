"""Gemma 3 270M, the real file, against transformers' own load of it, which dequantizes everything."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import quantry
from quantry.cli import cli
from quantry_transformers.export import hf_state

pytestmark = pytest.mark.slow
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def theirs(gemma_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma_path.parent, gguf_file=gemma_path.name)
    model = AutoModelForCausalLM.from_pretrained(
        gemma_path.parent, gguf_file=gemma_path.name, dtype=torch.float32
    )
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def ours(gemma_path):
    return quantry.load_model(gemma_path, numerics="exact")


def test_logits_and_16_greedy_tokens_equal(ours, theirs, gemma_path):
    ids = torch.tensor([theirs[1](PROMPT)["input_ids"]])
    with torch.inference_mode():
        expected, found = theirs[0](input_ids=ids).logits, ours[0](input_ids=ids).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    greedy = theirs[0].generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    options = ["-n", "16", "--temperature", "0", "--numerics", "exact", "--json"]
    result = CliRunner().invoke(cli, ["run", str(gemma_path), "-p", PROMPT, *options])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["tokens"] == greedy[0, ids.shape[1] :].tolist()
    assert document["text"] == theirs[1].decode(document["tokens"], skip_special_tokens=True)


def test_ids_and_decodes_equal_on_many_texts(ours, theirs):
    import random

    rng = random.Random(0)
    pieces = [t for t in ours[1].convert_ids_to_tokens(range(0, 262_144, 97)) if t]
    texts = [
        "",
        " ",
        "  a",
        "a  b   c",
        "\x00\x01",
        "\n\n\n\n",
        "🙂 naïve 你好",
        "<bos>x</s><unused5>a<start_of_turn>b",
    ]
    while len(texts) < 600:
        if len(texts) % 2:
            texts.append("".join(rng.choices(pieces, k=8)).replace("\u2581", " "))
        else:
            texts.append(
                "".join(
                    chr(rng.choice([rng.randrange(1, 127), rng.randrange(160, 0xD7FF)])) for _ in range(24)
                )
            )
    for text in texts:
        ids = ours[1](text)["input_ids"]
        assert ids == theirs[1](text)["input_ids"], text
        assert ours[1].decode(ids) == theirs[1].decode(ids)


def test_uqff_of_the_file_gives_the_same_text(ours, gemma_path, tmp_path):
    config, weights, files = hf_state(quantry.open(gemma_path))
    quantry.save_uqff(tmp_path / "g.uqff", weights, config=config, files=files)
    model, tokenizer = quantry.load_model(tmp_path, numerics="exact")
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    assert ids.tolist()[0] == ours[1](PROMPT)["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, ours[0](input_ids=ids).logits)

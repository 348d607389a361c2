"""UQFF folders of tiny models, exchanged with the real mistral.rs in both directions."""

from __future__ import annotations

import pytest
import torch

import quantry
from quantry_transformers.export import hf_state
from quantry_transformers.generate import Generation, TextStream

pytestmark = [pytest.mark.slow, pytest.mark.peer("mistralrs")]
mistralrs = pytest.importorskip("mistralrs", reason="pip install mistralrs")


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3"])
def test_what_mistralrs_writes_from_a_gguf_gives_equal_logits(tiny, tmp_path, arch):
    """Its llama folders keep q and k rows in GGUF order, its tokenizer_config.json is full of nulls."""
    made = tiny(arch)
    (tmp_path / "tokenizer.json").write_bytes(hf_state(quantry.open(made.path)).files["tokenizer.json"])
    mistralrs.Runner(
        which=mistralrs.Which.GGUF(
            str(made.path.parent),
            made.path.name,
            dtype=mistralrs.ModelDType.F32,
            tokenizer_json=str(tmp_path / "tokenizer.json"),
            write_uqff=str(tmp_path / "out" / "x.uqff"),
        ),
        in_situ_quant="q8_0",
    )
    ours, tokenizer = quantry.load_model(made.path, numerics="exact", reference=True)
    again, reread = quantry.load_model(tmp_path / "out", numerics="exact", reference=True)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids).logits, ours(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == [reread.eos_token_id] == [tokenizer.eos_token_id]


def test_mistralrs_continues_our_folder_as_we_do(tiny, tmp_path):
    config, weights, files = hf_state(quantry.open(tiny("qwen2").path))
    quantry.save_uqff(tmp_path / "x.uqff", weights, config=config, files=files)
    which = mistralrs.Which.Plain(str(tmp_path), from_uqff="x-0.uqff", dtype=mistralrs.ModelDType.F32)
    request = mistralrs.CompletionRequest(
        prompt="the theory of a", model="x", max_tokens=8, temperature=0.0, top_k=1
    )
    theirs = mistralrs.Runner(which=which).send_completion_request(request).choices[0].text
    model, tokenizer = quantry.load_model(tmp_path, numerics="exact", reference=True)
    ids = tokenizer("the theory of a")["input_ids"]
    stream = TextStream(tokenizer, ids)
    assert "".join(stream.push(i) for i in Generation(model, ids, 8)) + stream.finish() == theirs

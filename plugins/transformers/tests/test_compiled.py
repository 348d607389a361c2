"""Compiled steps give the tokens of uncompiled ones; without a compiler the error says so."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

import quantry
from quantry.cli import cli
from quantry_transformers.compiled import CompiledDecoder
from quantry_transformers.decoder import Decoder
from quantry_transformers.generate import Generation, compile_steps

# torch 2.13 imports a part of itself that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="needs a C++ compiler: install g++",
)


@pytest.fixture(scope="module")
def load(tiny):
    def loaded(arch):
        return quantry.load_model(tiny(arch, num_hidden_layers=2).path, numerics="exact", reference=True)[0]

    return loaded


def logits(decoder, ids, prompt):
    return torch.stack([decoder(ids[:prompt]), *(decoder(i) for i in ids[prompt:].split(1))])


@needs_compiler
@torch.inference_mode()
def test_logits_equal_uncompiled_ones_for_two_models_in_turns(load):
    """One graph a model, whatever the prompt: the second model must not get the first one's."""
    models = [load("gemma3"), load("qwen2")]
    for prompt in (3, 12):
        ids = 3 + torch.arange(prompt + 10) * 7 % 90
        for model in models:
            found = logits(CompiledDecoder(model, len(ids)), ids, prompt)
            expected = logits(Decoder(model, len(ids)), ids, prompt)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    logits(CompiledDecoder(models[0], 40), torch.arange(3, 40), 20)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@needs_compiler
def test_tokens_equal_uncompiled_ones(load):
    model = load("qwen3")
    compile_steps(model)
    assert list(Generation(model, [5, 6, 7], 8, stop=(), compiled=True)) == list(
        Generation(model, [5, 6, 7], 8, stop=())
    )


@needs_compiler
def test_run_compiles_on_request(tiny):
    path = str(tiny("llama").path)
    options = ["run", path, "-p", "a the", "-n", "6", "--numerics", "exact", "--reference", "--json"]
    documents = []
    for extra in ([], ["--compile"]):
        result = CliRunner().invoke(cli, [*options, *extra])
        assert result.exit_code == 0, result.output
        documents.append(json.loads(result.stdout))
    assert documents[0]["tokens"] == documents[1]["tokens"]
    assert "compile_s" not in documents[0]
    assert documents[1]["compile_s"] > 0


def test_without_a_compiler_the_error_says_so(load, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(quantry.UsageError, match="cannot be compiled") as caught:
        compile_steps(load("mistral"))
    assert "C++ compiler" in caught.value.hint


def test_a_model_that_runs_by_its_own_code_is_not_compiled(load):
    with pytest.raises(quantry.UsageError, match="not one of"):
        compile_steps(load("phi3"))

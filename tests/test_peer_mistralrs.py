"""UQFF both ways with the `mistralrs` wheel: it generates from what we write, and we read what it writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import quantry
from quantry.isq import quantize_checkpoint

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        importlib.util.find_spec("mistralrs") is None, reason="no mistralrs wheel: pip install mistralrs"
    ),
]

# one model load each; in a process of its own, which may hang or crash without the tests
_GENERATE = """
import json, sys
from mistralrs import CompletionRequest, ModelDType, Runner, Which
options = json.loads(sys.argv[1])
isq = options.pop("isq", None)
runner = Runner(which=Which.Plain(dtype=ModelDType.F32, **options), in_situ_quant=isq)
request = CompletionRequest(model="x", prompt="the quick brown", max_tokens=12, temperature=0.0)
print("TEXT", json.dumps(runner.send_completion_request(request).choices[0].text))
"""


def generate(**options) -> str:
    """What mistral.rs generates greedily; options of `Which.Plain`, and `isq`."""
    done = subprocess.run(
        [sys.executable, "-c", _GENERATE, json.dumps({k: str(v) for k, v in options.items()})],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("TEXT ")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0])


def checkpoint(folder, hidden=256, inter=512, kind="llama", tied=False, dtype=torch.float32):
    """A small Hugging Face checkpoint with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    rng, vocab = torch.Generator().manual_seed(0), 288
    held = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for i in range(2):
        layer = f"model.layers.{i}"
        held |= {f"{layer}.self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        held |= {f"{layer}.mlp.{n}_proj.weight": (inter, hidden) for n in ("gate", "up")}
        held |= {f"{layer}.mlp.down_proj.weight": (hidden, inter)}
        held |= {f"{layer}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
        if kind == "qwen2":
            held |= {f"{layer}.self_attn.{n}_proj.bias": (hidden,) for n in "qkv"}
    if tied:
        del held["lm_head.weight"]
    tensors = {
        name: (
            torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape, generator=rng) * 0.08
        )
        for name, shape in held.items()
    }
    folder.mkdir()
    save_file({name: t.to(dtype) for name, t in tensors.items()}, folder / "model.safetensors")
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {c: i + 3 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return folder


def ours(source, target, isq, **options):
    result = quantize_checkpoint(source, target / f"{isq}.uqff", isq, **options)
    return result.outputs[0]


def theirs(source, target, isq) -> str:
    target.mkdir()
    return generate(model_id=source, isq=isq, write_uqff=target / f"{isq}.uqff")


def ggml_truth(folder, name) -> np.ndarray:
    """The weight by the `gguf` package's arithmetic, from the raw entries."""
    import gguf

    held = load_file(next(folder.glob("*-0.uqff")))
    shape = held[f"{name}.shape"].tolist()
    kind = gguf.GGMLQuantizationType(held[f"{name}.dtype"].item())
    raw = held[name].numpy().reshape(shape[0], -1)
    return gguf.quants.dequantize(raw, kind).reshape(shape)


@pytest.mark.parametrize("isq", ["q8_0", "q4_0"])
def test_what_both_write_is_the_same_entry_for_entry(tmp_path, isq):
    source = checkpoint(tmp_path / "hf")
    report = ours(source, tmp_path / "ours", isq)
    text = theirs(source, tmp_path / "theirs", isq)
    a, b = (load_file(tmp_path / who / f"{isq}-0.uqff") for who in ("ours", "theirs"))
    assert a.keys() == b.keys()
    promoted = {"lm_head.weight", "model.embed_tokens.weight"} if isq == "q4_0" else set()
    for name in a.keys() - promoted:  # q6_k is llama.cpp's here and candle's there
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name
    a, b = (load_file(tmp_path / who / "residual.safetensors") for who in ("ours", "theirs"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    a, b = (json.loads((tmp_path / who / "uqff_report.json").read_text()) for who in ("ours", "theirs"))
    assert a["outputs"] == b["outputs"]
    assert report.fallbacks == ()
    if isq == "q8_0":
        assert generate(model_id=tmp_path / "ours", from_uqff=f"{isq}-0.uqff") == text


CASES = {
    "q4k": ({}, {"q4k": 14, "q6k": 2}, 0),
    "q4k, 288 columns": ({"inter": 288}, {"q4_1": 2, "q4k": 12, "q6k": 2}, 2),
    "q4k, 300 columns": ({"inter": 300}, {"f32": 2, "q4k": 12, "q6k": 2}, 2),
    "q8_0, 300 columns, bf16": ({"inter": 300, "dtype": torch.bfloat16}, {"f32": 2, "q8_0": 14}, 2),
    "q8_0, tied, bf16": ({"tied": True, "dtype": torch.bfloat16}, {"q8_0": 15}, 0),
    "q8_0, biases": ({"kind": "qwen2"}, {"q8_0": 16}, 0),
    "f32": ({}, {"unquant": 16}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_mistralrs_generates_from_what_we_write(tmp_path, case):
    options, counts, fallbacks = CASES[case]
    isq = case.split(",")[0]
    report = ours(checkpoint(tmp_path / "hf", **options), tmp_path / "ours", isq)
    assert report.actual_counts == counts
    assert len(report.fallbacks) == fallbacks
    assert generate(model_id=tmp_path / "ours", from_uqff=f"{isq}-0.uqff")
    assert quantry.verify(tmp_path / "ours") == []


def test_a_sharded_output_is_found_by_its_type(tmp_path):
    source = checkpoint(tmp_path / "hf")
    ours(source, tmp_path / "one", "q8_0")
    report = ours(source, tmp_path / "many", "q8_0", shard_bytes=300_000)
    assert len(report.shards) > 3
    text = generate(model_id=tmp_path / "one", from_uqff="q8_0")
    assert generate(model_id=tmp_path / "many", from_uqff="q8_0") == text


@pytest.mark.parametrize(
    ("isq", "options"),
    [("q8_0", {"kind": "qwen2"}), ("q4_1", {}), ("q5_0", {}), ("q4k", {"inter": 288}), ("q6k", {})],
)
def test_we_read_what_mistralrs_writes(tmp_path, isq, options):
    theirs(checkpoint(tmp_path / "hf", **options), tmp_path / "theirs", isq)
    dense = load_file(tmp_path / "hf" / "model.safetensors")
    ckpt = quantry.open(tmp_path / "theirs")
    assert set(ckpt.names()) == set(dense)
    for name in ckpt:
        qt = ckpt[name]
        if qt.layout.family == "dense":
            assert torch.equal(qt.dequantize(), dense[name].float()), name
        else:
            got = qt.dequantize().numpy()
            assert np.array_equal(got, ggml_truth(tmp_path / "theirs", name)), name
            assert np.abs(got - dense[name].numpy()).max() < 0.05
    assert [p for p in quantry.verify(tmp_path / "theirs", strict=True) if "fell back" not in p.problem] == []

"""UQFF with the `mistralrs` wheel, type by type: whatever tag an installed plugin stores is exchanged."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import quantry
from quantry import GroupedAffine, canonical_name, save_uqff
from quantry.isq import quantize_checkpoint
from quantry.testing import random_weight

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore:`torch.jit"),  # by transformers, at import
    pytest.mark.skipif(
        importlib.util.find_spec("mistralrs") is None, reason="no mistralrs wheel: pip install mistralrs"
    ),
]

# every type of mistral.rs: its tag, and the bits of a code by which its error is judged
TAG = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1"), 0),
    **dict.fromkeys(("q2k", "q3k", "q4k", "q5k", "q6k", "q8k"), 0),
    **dict.fromkeys(("hqq4", "hqq8"), 2), "fp8": 3, "f8q8": 5, "mxfp4": 6,
    **dict.fromkeys(("afq2", "afq3", "afq4", "afq6", "afq8"), 4),
}  # fmt: skip
BITS = {"fp8": 4, "f8q8": 4, "mxfp4": 3}
UNRUNNABLE = ("q8_1", "q8k")  # mistral.rs writes them and has no product for them
TAGS = {codec.tag for codec in quantry.registry().codecs}
READABLE = [name for name, tag in TAG.items() if tag in TAGS]
WRITABLE = [name for name in READABLE if canonical_name(name) in quantry.registry().quantizers]

# ids; the word of id 5 is "w5", and of an id below 3 nothing
PROMPTS = torch.randint(3, 288, (16, 5), generator=torch.Generator().manual_seed(0)).tolist()

# one model load each; in a process of its own, which may hang or crash without the tests
_RUN = """
import json, sys
from mistralrs import CompletionRequest, ModelDType, Runner, Which
options = json.loads(sys.argv[1])
isq = options.pop("isq", None)
runner = Runner(which=Which.Plain(dtype=ModelDType.F32, **options), in_situ_quant=isq)
for prompt in json.loads(sys.argv[2]) if isq is None else ():
    request = CompletionRequest(model="x", prompt=prompt, max_tokens=1, temperature=0.0)
    print("TEXT", runner.send_completion_request(request).choices[0].text, flush=True)
"""


def mistralrs(**options) -> tuple[list[str], str]:
    """(the likeliest word after each prompt, everything it said).

    options: of `Which.Plain`; with `isq` it only converts. Special words are "".
    """
    prompts = [" ".join(f"w{i}" for i in ids) for ids in PROMPTS]
    arguments = [json.dumps({k: str(v) for k, v in options.items()}), json.dumps(prompts)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    words = [line[5:].strip() for line in done.stdout.splitlines() if line.startswith("TEXT ")]
    words = ["" if word.startswith("<") else word for word in words]
    return words, done.stdout + done.stderr


def write_model(folder: Path, config) -> Path:
    """A random model by transformers, with a tokenizer whose words are `w3`, `w4`, … by id."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if not name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, 0.0, 0.08)
    model.float().save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    stated |= {
        "rope_theta": 10000.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
    }
    (folder / "config.json").write_text(json.dumps(stated))
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"Ġw{i}": i for i in range(3, config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    spaced = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(use_regex=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(spaced), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return folder


COMMON = {
    "vocab_size": 288, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """source(kind): the folder of a tiny model, made once."""
    import transformers

    kinds = {
        "llama": (transformers.LlamaConfig, {}),
        "qwen2": (transformers.Qwen2Config, {}),
        "qwen3_moe": (
            transformers.Qwen3MoeConfig,
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "head_dim": 64},
        ),
    }
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            config, extra = kinds[kind]
            made[kind] = write_model(tmp_path_factory.mktemp(kind) / "hf", config(**COMMON, **extra))
        return made[kind]

    return make


MARGIN = 0.05
"""Of the logits' spread. mistral.rs rounds activations to int8 per 32 for ggml types, which costs 0.2 % of a
dot product's spread in each of 8 products, and keeps keys and values in f16; more than that decides."""


def likeliest(folder: Path) -> list[str | None]:
    """The word after each prompt by our arithmetic in float32; None where the next one is as near."""
    model, tokenizer = quantry.load_model(folder, numerics="exact", reference=True, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(PROMPTS)).logits[:, -1]
    scores, best = logits.topk(2)
    clear = scores[:, 0] - scores[:, 1] > MARGIN * logits.std(-1)
    words = [tokenizer.decode([i], skip_special_tokens=True).strip() for i in best[:, 0].tolist()]
    return [word if sure else None for word, sure in zip(words, clear.tolist(), strict=True)]


@pytest.mark.parametrize("isq", [name for name in WRITABLE if name not in UNRUNNABLE])
def test_mistralrs_continues_what_we_write_as_we_do(source, tmp_path, isq):
    report = quantize_checkpoint(source("llama"), tmp_path / "x.uqff", isq).outputs[0]
    assert report.fallbacks == ()
    assert quantry.verify(tmp_path, strict=True) == []
    agrees(tmp_path)


def agrees(folder):
    words, said = mistralrs(model_id=folder, from_uqff="x-0.uqff")
    assert len(words) == len(PROMPTS), said[-2000:]
    ours = likeliest(folder)
    sure = [(mine, theirs) for mine, theirs in zip(ours, words, strict=True) if mine is not None]
    assert len(sure) >= len(PROMPTS) // 2
    assert [mine for mine, _ in sure] == [theirs for _, theirs in sure]
    assert len({mine for mine, _ in sure}) > 3  # it is no constant


@pytest.mark.parametrize("isq", [name for name in WRITABLE if name in UNRUNNABLE])
def test_mistralrs_loads_these_types_and_cannot_multiply_by_them(source, tmp_path, isq):
    quantize_checkpoint(source("llama"), tmp_path / "x.uqff", isq)
    words, said = mistralrs(model_id=tmp_path, from_uqff="x-0.uqff")
    assert set(words) <= {""}
    assert "is not supported yet" in said


@pytest.mark.parametrize("isq", READABLE)
def test_we_read_what_mistralrs_writes(source, tmp_path, isq):
    _, said = mistralrs(model_id=source("llama"), isq=isq, write_uqff=tmp_path / "x.uqff")
    assert (tmp_path / "x-0.uqff").exists(), said[-2000:]
    assert quantry.verify(tmp_path, strict=True) == []
    dense, ckpt = quantry.open(source("llama")), quantry.open(tmp_path)
    assert set(ckpt) == set(dense)
    packed = [name for name in ckpt if ckpt.entry(name).layout.family != "dense"]
    assert len(packed) == 9
    levels = 2 ** BITS.get(isq, int(next(c for c in isq if c.isdigit())))
    for name in packed:
        weight = dense[name].dequantize()
        error = (ckpt[name].dequantize() - weight).square().mean().sqrt()
        # rounding to `levels` over the range of normal weights, ±4 deviations; twice that for greedy rules
        assert error < 2 * 8 / (levels - 1) / 12**0.5 * weight.std(), name

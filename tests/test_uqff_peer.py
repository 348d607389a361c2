"""UQFF with the `mistralrs` wheel, type by type: whatever tag an installed plugin stores is exchanged."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
PROMPTS = torch.randint(3, 288, (24, 5), generator=torch.Generator().manual_seed(0)).tolist()

# one model load each; in a process of its own, which may hang or crash without the tests
_RUN = """
import json, sys
from mistralrs import CompletionRequest, ModelDType, Runner, Which
options = json.loads(sys.argv[1])
isq, dtype = options.pop("isq", None), getattr(ModelDType, options.pop("dtype", "F32"))
runner = Runner(which=Which.Plain(dtype=dtype, **options), in_situ_quant=isq)
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
    stated["num_experts"] = stated.get("num_local_experts")  # transformers 5 renamed it
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


MARGIN = 0.12
"""Of the logits' spread. mistral.rs rounds activations to int8 per 32 or 256, which costs up to 0.7 % of a
dot product's spread in each of 8 products: 2 % of a logit, 3 % of a difference of two; four times that
decides."""


def likeliest(folder: Path) -> list[str | None]:
    """The word after each prompt by our arithmetic in float32; None where the next one is as near."""
    model, tokenizer = quantry.load_model(folder, numerics="exact", reference=True, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(PROMPTS)).logits[:, -1]
    scores, best = logits.topk(2)
    clear = scores[:, 0] - scores[:, 1] > MARGIN * logits.std(-1)
    words = [tokenizer.decode([i]).strip() for i in best[:, 0].tolist()]
    words = ["" if word.startswith("<") else word for word in words]
    return [word if sure else None for word, sure in zip(words, clear.tolist(), strict=True)]


def dense(folder: Path) -> Path:
    """The same numbers as a plain checkpoint: no kernel looks up rows of HQQ's groups, which span rows."""
    ckpt, target = quantry.open(folder), folder / "dense"
    target.mkdir()
    save_file({name: ckpt[name].dequantize() for name in ckpt}, target / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, target)
    return target


@pytest.mark.parametrize("isq", [name for name in WRITABLE if name not in UNRUNNABLE])
def test_mistralrs_continues_what_we_write_as_we_do(source, tmp_path, isq):
    report = quantize_checkpoint(source("llama"), tmp_path / "x.uqff", isq).outputs[0]
    assert report.fallbacks == ()
    assert quantry.verify(tmp_path, strict=True) == []
    agrees(tmp_path)


def agrees(folder):
    words, said = mistralrs(model_id=folder, from_uqff="x-0.uqff")
    assert len(words) == len(PROMPTS), said[-2000:]
    rowless = any(entry.layout.step(-2) is None for entry in quantry.open(folder).entries())
    ours = likeliest(dense(folder) if rowless else folder)
    sure = [(mine, theirs) for mine, theirs in zip(ours, words, strict=True) if mine is not None]
    assert len(sure) >= len(PROMPTS) // 3
    assert [mine for mine, _ in sure] == [theirs for _, theirs in sure]
    assert len({mine for mine, _ in sure}) > 3  # it is no constant


BIASED = [name for name in ("q8_0", "hqq4", "fp8", "f8q8", "afq4") if name in WRITABLE]


@pytest.mark.parametrize("isq", BIASED)
def test_layers_with_a_bias_run_in_the_type_of_their_bias(source, tmp_path, isq):
    """mistral.rs writes float8 biases for fp8, which it cannot add; ours keep the source type. HQQ casts."""
    quantize_checkpoint(source("qwen2"), tmp_path / "x.uqff", isq)
    agrees(tmp_path)
    words, said = mistralrs(model_id=tmp_path, from_uqff="x-0.uqff", dtype="BF16")
    if isq == "hqq4":
        assert len(words) == len(PROMPTS)
    else:
        assert words == []
        assert "dtype mismatch in add, lhs: BF16, rhs: F32" in said


@pytest.mark.skipif("mxfp4" not in WRITABLE, reason="no installed plugin writes mxfp4")
def test_mxfp4_layers_with_a_bias_run_in_bf16_only(source, tmp_path):
    quantize_checkpoint(source("qwen2"), tmp_path / "x.uqff", "mxfp4")
    words, said = mistralrs(model_id=tmp_path, from_uqff="x-0.uqff")
    assert words == []
    assert "dtype mismatch in add, lhs: F32, rhs: BF16" in said
    assert len(mistralrs(model_id=tmp_path, from_uqff="x-0.uqff", dtype="BF16")[0]) == len(PROMPTS)


@pytest.mark.parametrize("isq", [name for name in ("q8_0", "afq8") if name in WRITABLE])
def test_expert_stacks_run_but_for_afq_off_metal(source, tmp_path, isq):
    """Its CPU and CUDA products of AFQ stacks take no notice of which experts were chosen."""
    quantize_checkpoint(source("qwen3_moe"), tmp_path / "x.uqff", isq)
    assert quantry.verify(tmp_path, strict=True) == []
    if isq == "q8_0":
        agrees(tmp_path)
        return
    words, said = mistralrs(model_id=tmp_path, from_uqff="x-0.uqff")
    assert words == []
    assert "AfqLayer as mistralrs_quant::QuantMethod>::gather_forward_raw" in said


INT4 = GroupedAffine(4, 32, "in", "int", "f16")


def with_int4(source, tmp_path, **options):
    """The folder of a model whose q_proj is GPTQ's kind of weight, the rest dense."""
    dense = quantry.open(source)
    held = {name: dense[name].buffers["weight"] for name in dense}
    name = next(name for name in held if name.endswith("q_proj.weight"))
    held[name] = random_weight(INT4, tuple(held[name].shape))
    files = {n: source / n for n in ("tokenizer.json", "tokenizer_config.json")}
    save_uqff(tmp_path / "x.uqff", held, config=dense.config, files=files, **options)
    return tmp_path


def test_mistralrs_refuses_the_extension_before_it_loads_anything(source, tmp_path):
    words, said = mistralrs(model_id=with_int4(source("llama"), tmp_path), from_uqff="x-0.uqff")
    assert words == []
    assert "ValueError: QuantizedSerdeType 255 is invalid." in said


@pytest.mark.parametrize(
    "portable",
    [
        pytest.param(True, marks=pytest.mark.skipif(4 not in TAGS, reason="no installed plugin has tag 4")),
        "q8_0",
    ],
)
def test_mistralrs_runs_what_was_made_portable(source, tmp_path, portable):
    agrees(with_int4(source("llama"), tmp_path, portable=portable))
    assert [p for p in quantry.verify(tmp_path, strict=True) if "fell back" not in p.problem] == []


def blob(held, key) -> bytes:
    """A layer of tag 0 as UQFF 0.2 stored it."""
    weight, shape = held[f"{key}.weight"], held[f"{key}.weight.shape"].tolist()
    code = held[f"{key}.weight.dtype"].item()
    head = struct.pack("<IBIBII", 0x200, 0, weight.numel(), 0, code, len(shape))
    return head + struct.pack(f"<{len(shape)}I", *shape) + bytes(weight.tolist())


def test_a_0_x_folder_is_kept_as_one_that_mistralrs_reads(source, tmp_path):
    quantize_checkpoint(source("llama"), tmp_path / "new" / "x.uqff", "q8_0")
    old = shutil.copytree(tmp_path / "new", tmp_path / "old")
    held = load_file(old / "x-0.uqff")
    order = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    keys = ["lm_head", *(f"model.layers.0.{part}" for part in order)]
    blobs = {str(i): torch.tensor(list(blob(held, key)), dtype=torch.uint8) for i, key in enumerate(keys)}
    save_file(blobs, old / "x-0.uqff")
    rest = load_file(old / "residual.safetensors")
    rest["model.embed_tokens.weight"] = quantry.open(source("llama"))[
        "model.embed_tokens.weight"
    ].dequantize()
    save_file(rest, old / "residual.safetensors")
    (old / "uqff_report.json").unlink()
    assert mistralrs(model_id=old, from_uqff="x-0.uqff")[0] == []
    assert quantry.verify(old) == []
    quantize_checkpoint(old, tmp_path / "again" / "x.uqff", "keep")
    agrees(tmp_path / "again")
    model, again = (likeliest(tmp_path / where) for where in ("old", "again"))
    assert model == again


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
    if isq in WRITABLE:
        (theirs,) = json.loads((tmp_path / "uqff_report.json").read_text())["outputs"]
        planned = quantize_checkpoint(source("llama"), tmp_path / "ours" / "x.uqff", isq, dry_run=True)
        assert planned.outputs[0].as_json() == theirs
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

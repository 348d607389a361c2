"""A GGUF file becomes a folder with transformers' names, which loads with equal logits, ids and stops."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import quantry
from quantry_transformers.architectures import ARCHITECTURES
from quantry_transformers.export import hf_state


def load(path, **options):
    return quantry.load_model(path, numerics="exact", reference=True, **options)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_uqff_of_a_gguf_gives_equal_logits(tiny, tmp_path, arch):
    made = tiny(arch)
    config, weights, files = hf_state(quantry.open(made.path))
    quantry.save_uqff(tmp_path / "x.uqff", weights, config=config, files=files)
    (ours, tokenizer), (again, reread) = load(made.path), load(tmp_path)
    assert torch.equal(logits(ours), logits(again))
    expected, found = ours.config.to_dict(), again.config.to_dict()
    assert {k: found.get(k) for k in expected} == expected
    assert again.generation_config.eos_token_id == ours.generation_config.eos_token_id
    text = "the theory of a thing"
    assert reread(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_files_are_json_with_the_template(tiny):
    template = "{{ messages }}"
    made = tiny("llama", edit=lambda writer, tensors: writer.add_chat_template(template))
    files = hf_state(quantry.open(made.path)).files
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == template
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2]


def test_rows_in_gguf_order_are_understood(tiny, tmp_path):
    """mistral.rs writes q and k of a GGUF as the file has them, and says so in a private key."""
    made = tiny("llama")
    ckpt = quantry.open(made.path)
    config, weights, files = hf_state(ckpt)
    as_stored = {name: ckpt[weights.stored_name(name)] for name in weights}
    adjacent = {**config, "_mistralrs_qk_rope_layout": "adjacent"}
    quantry.save_uqff(tmp_path / "x.uqff", as_stored, config=adjacent, files=files)
    assert torch.equal(logits(load(tmp_path)[0]), logits(load(made.path)[0]))
    (tmp_path / "config.json").write_text(json.dumps({**config, "_mistralrs_qk_rope_layout": "spiral"}))
    with pytest.raises(quantry.HeaderError, match="_mistralrs_qk_rope_layout"):
        load(tmp_path)


@pytest.fixture
def folder(tiny, tmp_path):
    """A plain safetensors folder, as `save_pretrained` writes it, with a tokenizer."""

    def make(arch, dtype=torch.float32):
        made = tiny(arch, "F32")
        copy.deepcopy(made.model).to(dtype).save_pretrained(tmp_path)
        for name, content in hf_state(quantry.open(made.path)).files.items():
            if name != "generation_config.json":
                (tmp_path / name).write_bytes(content)
        return made, tmp_path

    return make


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_a_dense_folder_stays_dense_and_equal(folder, arch):
    made, path = folder(arch)
    model, _ = load(path)
    assert torch.equal(logits(model), logits(made.model))
    assert not [m for m in model.modules() if isinstance(m, quantry.PackedModule)]


def test_a_dense_folder_keeps_its_dtype(folder):
    _, path = folder("llama", torch.bfloat16)
    assert load(path)[0].dtype == torch.bfloat16
    assert load(path, dtype=torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3", "phi3"])
def test_isq_packs_while_loading(folder, arch):
    made, path = folder(arch)
    model, _ = load(path, isq="q8_0")
    packed = {
        n: str(m.storable().layout) for n, m in model.named_modules() if isinstance(m, quantry.PackedModule)
    }
    assert set(packed.values()) == {"ggml:q8_0"}
    assert "model.embed_tokens" in packed
    assert not [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    found, expected = logits(model), logits(made.model)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.99


def test_a_folder_without_tokenizer_is_refused(folder):
    _, path = folder("llama")
    (path / "tokenizer.json").unlink()
    with pytest.raises(quantry.UsageError, match="has no tokenizer"):
        load(path)


def test_a_folder_without_config_is_refused(folder):
    _, path = folder("llama")
    (path / "config.json").unlink()
    with pytest.raises(quantry.UsageError, match=r"no config\.json"):
        load(path)


def test_an_unknown_model_type_is_named(folder):
    _, path = folder("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "nobody"}))
    with pytest.raises(quantry.HeaderError, match="nobody"):
        load(path)


def test_isq_of_packed_weights_is_refused(tiny):
    with pytest.raises(quantry.UsageError, match="packed already"):
        load(tiny("llama").path, isq="q8_0")


def test_a_config_that_is_nonsense_is_a_header_error(folder):
    _, path = folder("llama")
    config = json.loads((path / "config.json").read_text())
    for wrong in (
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
        {"hidden_size": 63},
        {"num_hidden_layers": 10**9},
        {"pad_token_id": 10**9},
    ):
        (path / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(quantry.FormatError):
            load(path)


def test_what_a_class_ignores_in_old_checkpoints_is_ignored(folder):
    from safetensors.torch import load_file, save_file

    made, path = folder("llama")
    file = path / "model.safetensors"
    type(made.model)._keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]
    try:
        stale = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
        save_file({**load_file(file), **stale}, file, {"format": "pt"})
        assert torch.equal(logits(load(path)[0]), logits(made.model))
    finally:
        type(made.model)._keys_to_ignore_on_load_unexpected = None

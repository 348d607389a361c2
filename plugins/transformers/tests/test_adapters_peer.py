"""Adapted models beside peft's own PeftModel and beside llama.cpp with the same files."""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import nn

import quantry

IDS = torch.arange(3, 43)
GELU_TABLE = 2.0**-11  # ggml looks GELU up in float16 (ggml-cpu/vec.h, GGML_GELU_FP16)
TEXT = (
    "The harbour was quiet that morning. Two boats had gone out before dawn, and the old man who mended nets"
    " by the wall said that neither would be back before the tide turned."
)
OPTIONS = {
    "all": {"target_modules": "all-linear"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "o_proj", "embed_tokens", "lm_head"],
        "rank_pattern": {"v_proj": 3, "^model.layers.0.*q_proj": 5},
        "alpha_pattern": {"o_proj": 3},
        "use_rslora": True,
    },
}


@torch.inference_mode()
def logits_of(model, ids):
    return model(input_ids=ids[None]).logits[0]


def ours(path, ids=IDS, **options):
    return logits_of(quantry.load_model(path, **options)[0], ids)


def saved_with_noise(adapted: nn.Module, folder: Path) -> torch.Tensor:
    """Fill peft's adapter with random numbers, save it, and give the model's logits in float64."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    with torch.inference_mode():
        return adapted.double()(input_ids=IDS[None]).logits[0]


@pytest.mark.peer("peft")
@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3", "phi3"])
def test_logits_equal_those_of_peft(tiny, model_folder, tmp_path, arch, options):
    """Dense weights, so that both compute the same; phi3's layers are fused."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    made, chosen = tiny(arch), dict(OPTIONS[options])
    if arch == "phi3" and options == "patterns":
        chosen["target_modules"] = ["qkv_proj", "o_proj", "embed_tokens", "lm_head"]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **chosen)
    adapted = peft.get_peft_model(copy.deepcopy(made.model), config)
    expected = saved_with_noise(adapted, tmp_path / "lora")
    base = made.model.double()(input_ids=IDS[None]).logits[0]
    made.model.float()
    assert (expected - base).abs().max() > 0.05 * base.abs().max()
    found = ours(model_folder(made.model), adapter=tmp_path / "lora", numerics="exact")
    columns = max(m.weight.shape[1] for m in made.model.modules() if isinstance(m, nn.Linear))
    bound = made.model.config.num_hidden_layers * columns * 2**-24 * expected.abs().max()
    assert (found - expected).abs().max() <= bound


@pytest.mark.peer("peft")
@pytest.mark.filterwarnings("ignore")  # peft's own
def test_weights_that_are_stored_transposed(hf_folder, tmp_path):
    """GPT-2's layers are [in, out] and no nn.Linear; peft says fan_in_fan_out."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    import transformers

    config = transformers.GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    model = hf_folder(tmp_path / "hf", config)
    options = {
        "fan_in_fan_out": True,
        "init_lora_weights": False,
        "target_modules": ["c_attn", "c_fc", "wte"],
    }
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **options))
    expected = saved_with_noise(adapted, tmp_path / "lora")
    plain = ours(tmp_path / "hf", numerics="exact")
    found = ours(tmp_path / "hf", adapter=tmp_path / "lora", numerics="exact")
    assert (expected - plain).abs().max() > 0.05 * expected.abs().max()
    assert (found - expected).abs().max() <= 2 * 256 * 2**-24 * expected.abs().max()


def theirs(path: Path, adapters: dict[str, float], ids: torch.Tensor = IDS) -> torch.Tensor:
    """llama.cpp's logits of every token, float32 [tokens, vocabulary]."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="`make peers` builds llama-cpp-python")
    kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    peer = llama_cpp.Llama(str(path), logits_all=True, n_ctx=256, n_threads=1, verbose=False, **kinds)
    context, model = peer._ctx.ctx, peer._model.model
    loaded = [llama_cpp.llama_adapter_lora_init(model, name.encode()) for name in adapters]
    assert all(loaded), "llama.cpp does not load the adapter"
    pointers = (llama_cpp.llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(
        *(ctypes.cast(p, llama_cpp.llama_cpp.llama_adapter_lora_p_ctypes) for p in loaded)
    )
    scales = (ctypes.c_float * len(loaded))(*adapters.values())
    assert llama_cpp.llama_set_adapters_lora(context, pointers, len(loaded), scales) == 0
    peer.eval(ids.tolist())
    found = torch.from_numpy(np.array(peer.scores[: len(ids)]))
    peer.close()
    return found


@pytest.mark.peer("llama_cpp")
@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3", "phi3"])
def test_logits_equal_those_of_llama_cpp(tiny, lora, tmp_path, arch):
    """Two adapters, one scaled. llama.cpp cannot add to an embedding that is the head, too."""
    made = tiny(arch, "F32")
    tied = made.model.config.tie_word_embeddings
    one, two = lora(made, only="layers" if tied else "", seed=1), lora(made, rank=2, only="mlp", seed=2)
    paths = {str(one.gguf(tmp_path / "one.gguf")): 1.0, str(two.gguf(tmp_path / "two.gguf")): -0.5}
    found = ours(made.path, adapter=[f"{path}={scale}" for path, scale in paths.items()], numerics="exact")
    expected, plain = theirs(made.path, paths), theirs(made.path, {})
    assert (expected - plain).abs().max() > 0.1 * plain.abs().max()
    # the same float32 products summed in another order, four matrices deep a layer, and the adapters' two
    config = made.model.config
    bound = 6 * config.num_hidden_layers * config.intermediate_size * torch.finfo(torch.float32).eps
    if arch == "gemma3":
        bound = config.num_hidden_layers * GELU_TABLE
    assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.slow
@pytest.mark.peer("llama_cpp")
def test_gemma_with_rank_16_on_every_layer(gemma_path, tmp_path):
    """Activations are rounded to int8 on both sides, which moves logits of this model by some tenths without
    an adapter: with one by no more than twice that, and the change is several times as much."""
    generator = np.random.default_rng(0)
    path = tmp_path / "lora.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 32.0)
    for entry in quantry.open(gemma_path).entries():
        if entry.name.startswith("blk.") and entry.ops == ("linear",):
            rows, columns = entry.shape
            a = generator.standard_normal((16, columns), "f4") / np.float32(columns**0.5)
            writer.add_tensor(f"{entry.name}.lora_a", a)
            writer.add_tensor(
                f"{entry.name}.lora_b", generator.standard_normal((rows, 16), "f4") * np.float32(0.02)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model, tokenizer = quantry.load_model(gemma_path, adapter=path)
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    plain, adapted = ours(gemma_path, ids), logits_of(model, ids)
    their_plain, their_adapted = theirs(gemma_path, {}, ids), theirs(gemma_path, {str(path): 1.0}, ids)
    noise = (plain - their_plain).pow(2).mean().sqrt()
    error = (adapted - their_adapted).pow(2).mean().sqrt()
    effect = (their_adapted - their_plain).pow(2).mean().sqrt()
    print(f"rms: unadapted {noise:.4f}, adapted {error:.4f}, change {effect:.3f}")
    assert error <= 2 * noise
    assert effect >= 5 * error

"""What calibration shows equals what the whole model, run by transformers, is multiplied by."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

import quantry
from quantry.isq import quantize_checkpoint
from quantry_transformers import calibrate as engine
from quantry_transformers.importance import collect_importance
from quantry_transformers.runtime import TransformersRuntime
from quantry_transformers.tokenizer import load_tokenizer
from quantry_transformers.weights import HfWeights

CHUNK = 24
TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. " * 3
BASE = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA = {"sliding_window": 8, "query_pre_attn_scalar": 16}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 64}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "olmo2": ("Olmo2Config", {}),  # no norm before attention: q, k and v get the hidden states themselves
    "qwen3_moe": ("Qwen3MoeConfig", {**MOE, "num_experts": 4, "decoder_sparse_step": 2}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
}
Folder = Callable[..., tuple[Path, Any]]


@pytest.fixture
def folder(tmp_path: Path, hf_folder: Callable[..., Any]) -> Folder:
    """folder(name, **changes): a saved model with its tokenizer, and the model."""

    def make(name: str, **changes: Any) -> tuple[Path, Any]:
        kind, fields = CONFIGS[name]
        model = hf_folder(tmp_path / name, getattr(transformers, kind)(**{**BASE, **fields, **changes}))
        return tmp_path / name, model

    return make


def chunks_of(text: str) -> Tensor:
    """The ids that a user of llama.cpp would expect: cut, BOS in the first place of each."""
    known = {letter: i for i, letter in enumerate(" .abcdefghijklmnopqrstuvwxyz", 4)}
    ids = [known[letter] for letter in text]
    cut = torch.tensor(ids[: len(ids) // CHUNK * CHUNK]).view(-1, CHUNK)
    cut[:, 0] = 1
    return cut


def hooked(model: Any, ids: Tensor) -> dict[str, NDArray[np.float64]]:
    """Mean of squares by name, from hooks on the whole dense model, in float64 NumPy; experts [E, K]."""
    rows: dict[str, list[NDArray[np.float64]]] = {}
    by_expert: dict[str, dict[int, list[NDArray[np.float64]]]] = {}
    handles = []

    def keep(name: str, module: nn.Module, args: Any) -> None:
        rows.setdefault(name, []).append(args[0].double().numpy().reshape(-1, args[0].shape[-1]))

    def keep_experts(path: str, module: Any, args: Any) -> None:
        hidden, ids, _ = args
        for expert in range(ids.max() + 1):
            x = hidden[(ids == expert).any(-1)]
            gate, up = nn.functional.linear(x, module.gate_up_proj[expert]).chunk(2, -1)
            inner = module.act_fn(gate) * up
            for part, seen in (("gate_proj", x), ("up_proj", x), ("down_proj", inner)):
                lists = by_expert.setdefault(f"{path}.{part}.weight", {})
                lists.setdefault(expert, []).append(seen.double().numpy())

    tied = model.config.tie_word_embeddings
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            name = f"{path}.weight" if path != "lm_head" or not tied else "model.embed_tokens.weight"
            handles.append(module.register_forward_pre_hook(lambda m, a, n=name: keep(n, m, a)))
        elif hasattr(module, "gate_up_proj") and path.endswith("experts"):
            handles.append(module.register_forward_pre_hook(lambda m, a, p=path: keep_experts(p, m, a)))
    with torch.no_grad():
        for chunk in ids.split(1):
            model(input_ids=chunk, use_cache=False)
    for handle in handles:
        handle.remove()
    means = {name: np.square(np.concatenate(xs)).mean(0) for name, xs in rows.items()}
    for name, lists in by_expert.items():
        experts = next(m for n, m in model.named_modules() if n == name.rsplit(".", 2)[0]).num_experts
        width = next(iter(lists.values()))[0].shape[1]
        means[name] = np.ones((experts, width))
        for expert, xs in lists.items():
            if sum(len(x) for x in xs):
                means[name][expert] = np.square(np.concatenate(xs)).mean(0)
    return means


def assert_equal_means(found: quantry.Importance, expected: dict[str, NDArray[np.float64]]) -> None:
    assert set(found.weights) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found.weights[name].numpy(), values, rtol=1e-5, atol=0, err_msg=name)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "mixtral"])
def test_importance_of_a_streamed_folder_is_that_of_hooks_on_the_whole_model(
    name: str, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    path, model = folder(name)
    found = collect_importance(path, TEXT, chunk_tokens=CHUNK)
    assert not caplog.records  # nothing was loaded whole
    ids = chunks_of(TEXT)
    assert (found.chunks, found.chunk_tokens) == (len(ids), CHUNK)
    assert_equal_means(found, hooked(model, ids))
    dense = next(name for name in found.weights if name.endswith("o_proj.weight"))
    assert found.counts[dense].tolist() == [ids.numel()]


def test_experts_of_an_old_mixtral_folder_have_the_names_of_its_tensors(folder: Folder) -> None:
    path, model = folder("mixtral")
    found = collect_importance(path, TEXT, chunk_tokens=CHUNK)
    expected = {
        name.replace(".mlp.experts", ".block_sparse_moe.experts"): values
        for name, values in hooked(model, chunks_of(TEXT)).items()
    }
    assert_equal_means(found, expected)
    counts = found.counts["model.layers.0.block_sparse_moe.experts.down_proj.weight"]
    assert counts.sum() == 2 * found.chunks * CHUNK


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "qwen3_moe", "mixtral"])
def test_names_are_those_of_plans_of_isq(name: str, folder: Folder, tmp_path: Path) -> None:
    path, _ = folder(name)
    found = collect_importance(path, TEXT, chunk_tokens=CHUNK)
    (plan,) = quantize_checkpoint(path, tmp_path / "x.uqff", "afq8", dry_run=True).plans
    own = {f"{key}.weight" for key in plan.keys}
    tied = "model.embed_tokens.weight" in found.weights
    assert set(found.weights) == own - (set() if tied else {"model.embed_tokens.weight"})


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_importance_of_a_gguf_file_is_that_of_its_dequantized_model(arch: str, tiny: Any) -> None:
    file = tiny(arch)
    text = "the theory of the hat and the cat. " * 8
    with quantry.use(numerics="exact", reference="allow"):
        found = collect_importance(file.path, text, chunk_tokens=CHUNK)
    tokenizer = load_tokenizer(quantry.open(file.path))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = torch.tensor(ids[: len(ids) // CHUNK * CHUNK]).view(-1, CHUNK)
    cut[:, 0] = 1
    expected = hooked(file.model, cut)
    assert set(found.weights) == set(expected)
    for name, values in expected.items():
        # kernels add in another order than torch: float32 over two layers
        np.testing.assert_allclose(found.weights[name].numpy(), values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_importance_of_a_uqff_folder_is_that_of_hooks_on_the_loaded_model(
    name: str, folder: Folder, tmp_path: Path
) -> None:
    path, _ = folder(name)
    quantize_checkpoint(path, tmp_path / "packed" / "x.uqff", "q8_0")
    packed = quantry.open(tmp_path / "packed")
    found = collect_importance(packed, TEXT, chunk_tokens=CHUNK)
    model, _ = TransformersRuntime().load(packed)
    rows: dict[str, list[NDArray[np.float64]]] = {}

    def keep(name: str, module: Any, args: Any) -> None:
        x = args[0].double().numpy()
        if len(args) > 1:  # experts: x [T, 1|k, K], chosen [T, k]
            x = np.broadcast_to(x, (*args[1].shape, x.shape[-1]))
            for expert in range(module.num_experts):
                rows.setdefault(f"{name} {expert}", []).append(x[args[1].numpy() == expert])
        else:
            rows.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))

    for stem, module in model.named_modules():
        if isinstance(module, (quantry.QuantLinear, quantry.QuantExperts, quantry.TiedHead)):
            own = "model.embed_tokens" if isinstance(module, quantry.TiedHead) else stem
            module.register_forward_pre_hook(functools.partial(keep, f"{own}.weight"))
    with torch.no_grad():
        for chunk in chunks_of(TEXT).split(1):
            model(input_ids=chunk, use_cache=False)
    router = {name for name in rows if ".mlp.gate." in name}
    assert {name.split()[0] for name in rows} - router == set(found.weights)
    for name, xs in rows.items():
        stem, _, expert = name.partition(" ")
        if name in router or not sum(map(len, xs)):
            continue
        values = found.weights[stem][int(expert)] if expert else found.weights[stem]
        expected = np.square(np.concatenate(xs)).mean(0)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=0, err_msg=name)


def test_at_most_one_layer_has_weights_at_any_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder("qwen3_moe")
    built: list[Any] = []
    real = engine.blueprint

    def blueprint(*args: Any) -> Any:
        built.append(real(*args))
        return built[-1]

    monkeypatch.setattr(engine, "blueprint", blueprint)
    filled: list[set[int]] = []

    def observe(names: Any, x: Tensor, experts: Tensor | None) -> None:
        layers = built[0].model.model.layers
        filled.append({
            i for i, layer in enumerate(layers)
            if any(not t.is_meta for t in (*layer.parameters(), *layer.buffers()))
        })  # fmt: skip
        assert built[0].model.lm_head.weight.is_meta

    TransformersRuntime().calibrate(quantry.open(path), TEXT, observe, chunk_tokens=CHUNK)
    assert len(built) == 1
    assert {frozenset(f) for f in filled} == {frozenset({i}) for i in range(3)} | {frozenset()}  # the head


def test_each_weight_is_read_once_and_the_head_never(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder("llama")
    read: list[str] = []
    real = HfWeights.load

    def load(self: HfWeights, name: str, rows: slice | None = None) -> quantry.QuantizedTensor:
        read.append(name)
        return real(self, name, rows)

    monkeypatch.setattr(HfWeights, "load", load)
    collect_importance(path, TEXT, chunk_tokens=CHUNK)
    assert sorted(read) == sorted(n for n in quantry.open(path).names() if n != "lm_head.weight")


def test_groups_of_chunks_change_nothing_but_how_often_layers_are_read(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = folder("gemma2")
    whole = collect_importance(path, TEXT, chunk_tokens=CHUNK)
    monkeypatch.setattr(engine, "HIDDEN_BYTES", 4 * 2 * CHUNK * BASE["hidden_size"])  # of two chunks
    told: list[tuple[int, int, str]] = []
    grouped = collect_importance(
        path, TEXT, chunk_tokens=CHUNK, progress=lambda done, total, what: told.append((done, total, what))
    )
    for name, values in whole.weights.items():
        assert torch.equal(grouped.weights[name], values), name
    groups = -(-whole.chunks // 2)
    assert sum(what != last[2] for last, (_, _, what) in itertools.pairwise(told)) == 3 * groups - 1
    assert told[-1][:2] == (3 * whole.chunks, 3 * whole.chunks)


def test_a_model_whose_layers_take_more_than_hidden_states_is_run_whole_and_it_is_said(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    CONFIGS["gemma4"] = ("Gemma4TextConfig", {"sliding_window": 8, "vocab_size_per_layer_input": 64,
                         "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0})  # fmt: skip
    path, model = folder("gemma4")
    found = collect_importance(path, TEXT, chunk_tokens=CHUNK)
    assert "not layer by layer" in caplog.text
    assert "depends on the text" in caplog.text
    assert_equal_means(found, hooked(model, chunks_of(TEXT)))


def test_weights_that_share_an_input_are_shown_together(folder: Folder) -> None:
    path, _ = folder("qwen3_moe", decoder_sparse_step=2)
    calls: list[tuple[str, ...]] = []
    shapes: list[tuple[int, ...]] = []

    def observe(names: Any, x: Tensor, experts: Tensor | None) -> None:
        calls.append(tuple(name.split("layers.")[-1].lstrip("0123456789.") for name in names))
        shapes.append(tuple(x.shape))
        assert (experts is not None) == any("experts" in name for name in names)

    done = TransformersRuntime().calibrate(quantry.open(path), TEXT, observe, chunks=1, chunk_tokens=CHUNK)
    assert (done.chunks, done.tokens) == (1, CHUNK)
    attention = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
    assert calls[:4] == [
        attention, ("self_attn.o_proj.weight",), ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ("mlp.down_proj.weight",),
    ]  # fmt: skip
    experts = ("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight")
    assert calls[4:8] == [
        attention, ("self_attn.o_proj.weight",), experts, ("mlp.experts.down_proj.weight",)
    ]  # fmt: skip
    assert calls[-1] == ("lm_head.weight",)
    assert shapes[6] == (2 * CHUNK, 64)
    assert shapes[7] == (2 * CHUNK, 32)


def test_a_layer_that_changes_its_input_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder("llama")
    from transformers.models.llama import modeling_llama

    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * self.up_proj(x.mul_(2)))

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", forward)
    with pytest.raises(quantry.UsageError, match="in place") as e:
        collect_importance(path, TEXT, chunk_tokens=CHUNK)
    assert e.value.tensor == "model.layers.0.mlp.gate_proj.weight"


def test_the_head_may_be_left_out(folder: Folder) -> None:
    for name, head in (("llama", "lm_head.weight"), ("qwen3", "model.embed_tokens.weight")):
        path, _ = folder(name)
        assert head in collect_importance(path, TEXT, chunk_tokens=CHUNK).weights
        assert head not in collect_importance(path, TEXT, chunk_tokens=CHUNK, output_head=False).weights


def test_nan_among_weights_is_refused_by_the_first_weight_it_reaches(folder: Folder) -> None:
    path, model = folder("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 5] = torch.nan
    model.save_pretrained(path)
    with pytest.raises(quantry.ValueDomainError) as e:
        collect_importance(path, TEXT, chunk_tokens=CHUNK)
    assert e.value.tensor == "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("options", "said"), [({"chunk_tokens": 65}, "context of 64"), ({"device": "tpu"}, "tpu")]
)
def test_what_the_model_or_the_machine_lacks_is_refused(
    folder: Folder, options: dict[str, Any], said: str
) -> None:
    path, _ = folder("llama")
    with pytest.raises(quantry.UsageError, match=said):
        collect_importance(path, TEXT, **{"chunk_tokens": CHUNK, **options})


def test_a_tokenizer_of_another_model_is_refused(folder: Folder) -> None:
    path, _ = folder("llama", vocab_size=16)
    with pytest.raises(quantry.UsageError, match="vocabulary ends at 15"):
        collect_importance(path, TEXT, chunk_tokens=CHUNK)


def test_bfloat16_weights_run_with_float32_activations(folder: Folder) -> None:
    path, model = folder("llama")
    copy.deepcopy(model).bfloat16().save_pretrained(path)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    assert_equal_means(collect_importance(path, TEXT, chunk_tokens=CHUNK), hooked(model, chunks_of(TEXT)))


@pytest.mark.slow
def test_values_of_gemma_are_those_of_numpy_over_hooks(gemma_path: Path) -> None:
    from quantry_transformers.importance import default_text

    tokens, count = 128, 2
    with quantry.use(numerics="exact"):
        found = collect_importance(gemma_path, None, chunks=count, chunk_tokens=tokens)
        model, tokenizer = TransformersRuntime().load(quantry.open(gemma_path), numerics="exact")
    ids = torch.tensor(tokenizer(default_text(), add_special_tokens=False)["input_ids"][: count * tokens])
    cut = ids.view(count, tokens)
    cut[:, 0] = 2
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (quantry.QuantLinear, quantry.TiedHead)):
            name = "model.embed_tokens" if path == "lm_head" else path
            module.register_forward_pre_hook(
                lambda m, a, n=f"{name}.weight": rows.setdefault(n, []).append(a[0][0].double().numpy())
            )
    with torch.no_grad():
        for chunk in cut.split(1):
            model(input_ids=chunk, use_cache=False)
    assert set(found.weights) == set(rows)
    assert len(rows) == 18 * 7 + 1
    for name, xs in rows.items():
        expected = np.square(np.concatenate(xs)).mean(0)
        np.testing.assert_allclose(found.weights[name].numpy(), expected, rtol=1e-5, atol=0, err_msg=name)

"""Checkpoints that are no GGUF files: what a runtime exports, written as llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import libgguf
import numpy as np
import pytest
import torch

import quantry
from quantry import (
    Checkpoint,
    Dense,
    Exported,
    PluginError,
    QuantizedTensor,
    Runtime,
    TensorEntry,
    UsageError,
    hookimpl,
)
from quantry.testing import installed
from quantry_gguf.convert import convert_gguf
from quantry_gguf.mixes import file_type
from quantry_gguf.tensor_types import TypeOptions

SHAPES = {
    "token_embd.weight": (6, 256), "output_norm.weight": (256,), "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (4, 256), "blk.0.attn_q.bias": (4,), "blk.0.attn_v.weight": (4, 256),
    "blk.0.ffn_gate_inp.weight": (3, 256), "blk.0.ffn_up_exps.weight": (3, 2, 256),
}  # fmt: skip
CONFIG = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.attention.head_count": np.uint32(4),
    "llama.rope.freq_base": 1e4, "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.5, -1.0],
    "tokenizer.ggml.token_type": [1, 3], "tokenizer.ggml.merges": [], "tokenizer.ggml.add_bos_token": True,
}  # fmt: skip
QUERY = "blk.0.attn_q.weight"
OWN = {"blk.0.attn_q.weight": "layers.0.q.weight", "blk.0.ffn_up_exps.weight": "layers.0.experts.up"}


class Weights:
    """Tensors under GGUF names, in one dtype."""

    def __init__(self, dtype: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            name: torch.randn(shape, generator=generator).to(quantry.torch_dtype(dtype))
            for name, shape in SHAPES.items()
        }
        self.layout = Dense(dtype)

    def entries(self) -> Sequence[TensorEntry]:
        return [TensorEntry(name, self.layout, shape) for name, shape in SHAPES.items()]

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        part = self.tensors[name] if rows is None else self.tensors[name][rows]
        return QuantizedTensor(self.layout, tuple(part.shape), {"weight": part.contiguous()})


class Toy(Runtime):
    """Exports `weights` whatever the checkpoint holds."""

    name = "toy"
    conventions = ("gguf",)

    def __init__(self, weights: Weights | None, why: str | None = None) -> None:
        self.weights, self.why = weights, why

    def why_not(self, checkpoint: Checkpoint) -> str | None:
        return self.why

    def load(self, checkpoint: Checkpoint, **options: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    def export_as(self, checkpoint: Checkpoint, convention: str) -> Exported | None:
        return None if self.weights is None else Exported(CONFIG, self.weights, {})

    def other_names(self, checkpoint: Checkpoint, convention: str) -> Mapping[str, str]:
        return OWN


def plugins(*runtimes: Runtime) -> Any:
    from quantry_gguf import plugin

    @hookimpl
    def quantry_runtimes() -> Sequence[Runtime]:
        return runtimes

    hooks = {name: getattr(plugin, name) for name in vars(plugin) if name.startswith("quantry_")}
    return SimpleNamespace(**hooks, quantry_runtimes=quantry_runtimes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"layers.0.q.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    return tmp_path


def converted(folder: Path, type: str, runtime: Runtime, **options: Any) -> dict[str, gguf.ReaderTensor]:
    with installed(plugins(runtime), "toys", alone=True):
        convert_gguf(folder, folder / "out.gguf", TypeOptions(file_type(type)), **options)
    return {t.name: t for t in gguf.GGUFReader(folder / "out.gguf").tensors}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_vectors_and_routers_become_float32(folder: Path, dtype: str) -> None:
    weights = Weights(dtype)
    made = converted(folder, "Q8_0", Toy(weights))
    assert {name: t.tensor_type.name for name, t in made.items()} == {
        name: "Q8_0" if len(shape) > 1 and "gate_inp" not in name else "F32" for name, shape in SHAPES.items()
    }
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight"):
        assert np.array_equal(made[name].data, weights.tensors[name].float().numpy())


@pytest.mark.parametrize("type", ["F16", "BF16", "F32", "Q4_K_M"])
def test_matrices_have_the_bytes_of_llama_cpp(folder: Path, type: str) -> None:
    weights = Weights("bf16")
    for name, tensor in converted(folder, type, Toy(weights)).items():
        wide = weights.tensors[name].float().numpy()
        if tensor.tensor_type.name in ("F16", "BF16", "F32"):
            expected = gguf.quants.quantize(wide, tensor.tensor_type)
        else:
            flat = libgguf.quantize_rows(wide.reshape(-1, 256), tensor.tensor_type.value)
            expected = flat.reshape(*wide.shape[:-1], -1)
        assert np.array_equal(tensor.data.view(np.uint8), expected.view(np.uint8)), name


def test_key_values_get_the_types_of_the_format(folder: Path) -> None:
    converted(folder, "Q8_0", Toy(Weights("f32")))
    fields = gguf.GGUFReader(folder / "out.gguf").fields
    found = {key: [t.name for t in f.types] for key, f in fields.items() if not key.startswith("GGUF.")}
    assert found == {
        "general.architecture": ["STRING"], "llama.block_count": ["UINT32"],
        "llama.attention.head_count": ["UINT32"], "llama.rope.freq_base": ["FLOAT32"],
        "tokenizer.ggml.tokens": ["ARRAY", "STRING"], "tokenizer.ggml.scores": ["ARRAY", "FLOAT32"],
        "tokenizer.ggml.token_type": ["ARRAY", "INT32"], "tokenizer.ggml.add_bos_token": ["BOOL"],
        "general.quantization_version": ["UINT32"], "general.file_type": ["UINT32"],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["gguf", "cimatrix"])
def test_importance_is_found_under_either_name(folder: Path, suffix: str) -> None:
    """GGUF's name of a weight and the model's own, with `.weight` and without, a stack flat and not."""
    values = torch.rand(256, generator=torch.Generator().manual_seed(3)) + 0.1
    experts = torch.rand(3, 256, generator=torch.Generator().manual_seed(4)) + 0.1
    names = {own: gguf for gguf, own in OWN.items()} if suffix == "cimatrix" else {g: g for g in OWN}
    given = {name: values if "q" in name.split(".") or "attn_q" in name else experts for name in names}
    quantry.write_importance(folder / f"x.{suffix}", quantry.Importance(given))
    weights = Weights("f32")
    made = converted(folder, "Q4_K_M", Toy(weights), imatrix=folder / f"x.{suffix}")
    kind = made["blk.0.attn_q.weight"].tensor_type.value
    expected = libgguf.quantize_rows(weights.tensors["blk.0.attn_q.weight"].numpy(), kind, values.numpy())
    assert np.array_equal(made["blk.0.attn_q.weight"].data, expected)
    for i, stack in enumerate(made["blk.0.ffn_up_exps.weight"].data):
        rows = weights.tensors["blk.0.ffn_up_exps.weight"][i].numpy()
        kind = made["blk.0.ffn_up_exps.weight"].tensor_type.value
        assert np.array_equal(stack, libgguf.quantize_rows(rows, kind, experts[i].numpy()))


def test_packed_weights_of_another_method_are_packed_anew_only_when_asked(folder: Path) -> None:
    class Packed(Weights):
        def entries(self) -> Sequence[TensorEntry]:
            layout = self.packed(QUERY).layout
            return [TensorEntry(e.name, layout, e.shape) if e.name == QUERY else e for e in super().entries()]

        def packed(self, name: str) -> QuantizedTensor:
            return quantry.quantize(self.tensors[name], "afq8")

        def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
            return self.packed(name) if name == QUERY else super().load(name, rows)

    weights = Packed("f32")
    with pytest.raises(UsageError, match="already and would become q8_0") as e:
        convert_gguf_beside(folder, Toy(weights))
    assert e.value.tensor == "blk.0.attn_q.weight"
    convert_gguf_beside(folder, Toy(weights), requantize=True)
    made = {t.name: t for t in gguf.GGUFReader(folder / "out.gguf").tensors}
    wide = weights.packed("blk.0.attn_q.weight").dequantize().numpy()
    expected = gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(made["blk.0.attn_q.weight"].data, expected)


def convert_gguf_beside(folder: Path, runtime: Runtime, **options: Any) -> None:
    """With the toy in the place of the other runtimes, and all other plugins installed."""

    @hookimpl
    def quantry_runtimes() -> Sequence[Runtime]:
        return [runtime]

    with installed(SimpleNamespace(quantry_runtimes=quantry_runtimes), "toys"):
        convert_gguf(folder, folder / "out.gguf", TypeOptions(file_type("Q8_0")), **options)


@pytest.mark.parametrize(
    ("runtimes", "error", "words"),
    [
        ([], PluginError, "no installed plugin knows how GGUF names a model's weights"),
        ([Toy(None, "it is a toy")], UsageError, "toy: it is a toy"),
        ([Toy(None)], UsageError, "toy: does not know how GGUF names this model"),
    ],
)
def test_a_checkpoint_that_no_runtime_can_name_says_why(
    folder: Path, runtimes: list[Runtime], error: type[Exception], words: str
) -> None:
    with installed(plugins(*runtimes), "toys", alone=True), pytest.raises(error, match=words):
        convert_gguf(folder, folder / "out.gguf", TypeOptions(file_type("Q8_0")))
    assert not (folder / "out.gguf").exists()


def test_numbers_that_are_no_weights_are_refused(folder: Path) -> None:
    class Integers(Weights):
        def entries(self) -> Sequence[TensorEntry]:
            return [TensorEntry(n, Dense("u8") if "bias" in n else self.layout, s) for n, s in SHAPES.items()]

    with pytest.raises(UsageError, match="is dense:u8, which is no weight") as e:
        converted(folder, "Q8_0", Toy(Integers("f32")))
    assert e.value.tensor == "blk.0.attn_q.bias"

"""Files of `quantry convert gguf` are those of llama.cpp itself, byte for byte, and run there as here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import open_gguf
from gguf_models import MODELS, Synthetic, importance_of, in_order, write_model
from llama_logits import logits
from llama_quantize import quantize
from mix_cases import golden, short
from safetensors.torch import save_file

import quantry
from quantry_gguf.convert import convert_gguf
from quantry_gguf.mixes import FILE_TYPES, file_type
from quantry_gguf.tensor_types import TypeOptions

llama_cpp = pytest.importorskip("llama_cpp", reason="`make peers` builds llama-cpp-python")
pytestmark = [pytest.mark.slow, pytest.mark.peer("llama_cpp")]

KEPT = "kept tensors"
FILES = {name: model for name, model in MODELS.items() if not model.no_file}
SMALL = [name for name, model in FILES.items() if model.values["block_count"] < 80]


def ours(source: Path, target: Path, type: str, imatrix: Path | None = None, **options: Any) -> bytes:
    overrides = tuple((re.compile(pattern), kind) for pattern, kind in options.pop("overrides", ()))
    requantize = options.pop("requantize", False)
    asked = TypeOptions(file_type(type), overrides=overrides, **options)
    convert_gguf(source, target, asked, imatrix=imatrix, requantize=requantize)
    return target.read_bytes()


def theirs(source: Path, target: Path, type: str, **options: Any) -> bytes:
    assert quantize(source, target, type, **options)
    return target.read_bytes()


def data_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name → type and bytes; the gguf package does not know Q2_0."""
    checkpoint, data = open_gguf(path), path.read_bytes()
    return {
        e.name: (e.place.type.name, data[e.place.offset : e.place.offset + e.nbytes])
        for e in checkpoint.entries()
    }


def importance_file(path: Path, model: Synthetic) -> Path:
    """The same numbers, of count 1, so that no division rounds."""
    weights = {
        name: torch.from_numpy(values).view(-1, model.tensors[name][-1])
        for name, values in importance_of(model).items()
    }
    quantry.write_importance(path, quantry.Importance(weights))
    return path


@pytest.mark.parametrize(("name", "dtype"), [*((name, "f32") for name in SMALL), (SMALL[0], "bf16")])
def test_whole_files_are_equal(tmp_path: Path, name: str, dtype: str) -> None:
    source = write_model(tmp_path / "in.gguf", MODELS[name], dtype)
    for type, types in golden()[name].items():
        if types is not None and len(type.split()) == 1:
            expected = theirs(source, tmp_path / "theirs.gguf", type)
            found = ours(source, tmp_path / "ours.gguf", type)
            if name == KEPT:  # llama.cpp drops dimensions of 1 in front; we keep the source's shapes
                assert data_of(tmp_path / "ours.gguf") == data_of(tmp_path / "theirs.gguf"), type
            else:
                assert found == expected, type


SOME = ("Q4_0", "Q4_K_M", "Q2_K_S", "IQ1_S", "IQ2_M", "IQ3_XXS", "IQ4_XS")


@pytest.mark.parametrize(
    ("name", "types"),
    [
        (SMALL[0], [t.name for t in FILE_TYPES if not t.is_dense]),
        ("mixtral, 8 experts", SOME),
        ("gemma3 of 640 columns, tied", SOME),
    ],
)
def test_tensors_with_importance_are_equal(tmp_path: Path, name: str, types: Sequence[str]) -> None:
    model = MODELS[name]
    source = write_model(tmp_path / "in.gguf", model)
    imatrix = importance_file(tmp_path / "imatrix.gguf", model)
    for type in types:
        theirs(source, tmp_path / "theirs.gguf", type, importance=importance_of(model))
        ours(source, tmp_path / "ours.gguf", type, imatrix)
        expected = data_of(tmp_path / "theirs.gguf")
        assert data_of(tmp_path / "ours.gguf") == expected, type
        assert list(expected) == in_order(model)


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True}, {"output": "q5_0", "embedding": "q8_0"},
        {"overrides": (("ffn_(up|gate)", "iq4_nl"), ("attn", "q6_k"))}, {"requantize": True},
    ],
    ids=str,
)  # fmt: skip
def test_options_give_equal_files(tmp_path: Path, options: dict[str, Any]) -> None:
    source = write_model(tmp_path / "in.gguf", MODELS["llama of groups of 4"])
    if "requantize" in options:
        theirs(source, tmp_path / "packed.gguf", "Q6_K")
        source = tmp_path / "packed.gguf"
    for type in ("Q4_K_M", "IQ3_M"):
        expected = theirs(source, tmp_path / "theirs.gguf", type, **options)
        assert ours(source, tmp_path / "ours.gguf", type, **options) == expected


def test_the_golden_types_are_those_of_the_installed_llama_cpp(tmp_path: Path) -> None:
    """For models that no other test here converts."""
    for name in set(FILES) - set(SMALL):
        source = write_model(tmp_path / "in.gguf", MODELS[name])
        for type, types in golden()[name].items():
            if types is not None and len(type.split()) == 1:
                theirs(source, tmp_path / "theirs.gguf", type)
                found = {k: v[0] for k, v in data_of(tmp_path / "theirs.gguf").items()}
                assert short(found) == types
                ours(source, tmp_path / "ours.gguf", type)
                assert data_of(tmp_path / "ours.gguf") == data_of(tmp_path / "theirs.gguf")


def dense(source: Path, target: Path, type: str = "F32") -> Path:
    convert_gguf(source, target, TypeOptions(file_type(type)), requantize=True)
    return target


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "Q3_K_L"])
def test_gemma_is_equal_whole(tmp_path: Path, gemma_path: Path, type: str) -> None:
    source = dense(gemma_path, tmp_path / "f32.gguf")
    expected = theirs(source, tmp_path / "theirs.gguf", type)
    assert ours(source, tmp_path / "ours.gguf", type) == expected


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ2_M"])
def test_gemma_with_importance_has_equal_tensors(tmp_path: Path, gemma_path: Path, type: str) -> None:
    source = dense(gemma_path, tmp_path / "bf16.gguf", "BF16")
    rng = np.random.default_rng(8)
    matrices = [e for e in open_gguf(source).entries() if len(e.shape) > 1 and e.name.startswith("blk")]
    importance = {e.name: rng.random(e.shape[-1], np.float32) ** 3 for e in matrices}
    weights = {name: torch.from_numpy(values) for name, values in importance.items()}
    quantry.write_importance(tmp_path / "imatrix.gguf", quantry.Importance(weights))
    theirs(source, tmp_path / "theirs.gguf", type, importance=importance)
    ours(source, tmp_path / "ours.gguf", type, tmp_path / "imatrix.gguf")
    assert data_of(tmp_path / "ours.gguf") == data_of(tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def folder(gemma_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face folder of bfloat16 weights."""
    pytest.importorskip("quantry_transformers", reason="pip install quantry-transformers names the weights")
    checkpoint = quantry.open(gemma_path)
    (exported,) = (
        found
        for runtime in quantry.registry().runtimes
        if runtime.why_not(checkpoint) is None and (found := runtime.export(checkpoint)) is not None
    )
    folder = tmp_path_factory.mktemp("gemma")
    names = [entry.name for entry in exported.weights.entries()]
    weights = {name: exported.weights.load(name).dequantize(torch.bfloat16) for name in names}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(exported.config)))
    for name, content in exported.files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS"])
def test_a_folder_becomes_a_file_that_llama_cpp_quantizes_alike(
    folder: Path, tmp_path: Path, type: str
) -> None:
    """Our BF16 file of the folder, quantized by llama.cpp, is our file of that type."""
    ours(folder, tmp_path / "bf16.gguf", "BF16")
    theirs(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", type)
    ours(folder, tmp_path / "ours.gguf", type)
    assert data_of(tmp_path / "ours.gguf") == data_of(tmp_path / "theirs.gguf")


PROMPTS = (
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\n",
)


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS"])
def test_logits_in_llama_cpp_are_ours_within_the_rounding_of_activations(
    folder: Path, tmp_path: Path, type: str
) -> None:
    """llama.cpp and our default numerics round activations to int8, each after sums of its own order.

    What that rounding changes is measured: our logits with it against those without. Two roundings that
    share nothing differ by its square root of 2; 1.5 leaves room for a prompt's chance. A wrong tensor
    changes logits by twenty times as much.
    """
    path = tmp_path / "x.gguf"
    ours(folder, path, type)
    models = {n: quantry.load_model(path, numerics=n, reference=True) for n in ("exact", "strict")}
    for prompt in PROMPTS:
        tokenizer = models["exact"][1]
        ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            exact, strict = (model(input_ids=torch.tensor([ids])).logits[0] for model, _ in models.values())
        found = logits(path, ids)
        noise = rms(exact - strict)
        assert rms(found - exact) < 1.5 * noise
        assert rms(found - strict) < 1.5 * 2**0.5 * noise
        assert noise < rms(exact) / 15, "else the comparison would say nothing"


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())

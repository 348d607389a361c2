"""LoRA adapters in GGUF files: written by the `gguf` package, and ones that lie."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

import quantry
from quantry import FormatError, HeaderError, ShapeError, UsageError, ValueDomainError

Q, UP = "blk.0.attn_q.weight", "blk.1.ffn_up.weight"
RNG = np.random.default_rng(0)
HALVES = {
    f"{Q}.lora_a": RNG.standard_normal((4, 64), "f4"),
    f"{Q}.lora_b": RNG.standard_normal((32, 4), "f4"),
    f"{UP}.lora_a": RNG.standard_normal((2, 64), "f4"),
    f"{UP}.lora_b": RNG.standard_normal((96, 2), "f4"),
}
LORA = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}


@pytest.fixture
def write(tmp_path):
    """write(tensors, **keys by name; None leaves one out): the file."""

    def make(tensors=HALVES, kinds=None, endian=gguf.GGUFEndian.LITTLE, **keys) -> Path:
        path = tmp_path / "lora.gguf"
        writer = gguf.GGUFWriter(path, "llama", endianess=endian)
        for key, value in {**LORA, **keys}.items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, list):
                writer.add_array(key, value)
            elif value is not None:
                writer.add_uint32(key, value)
        for name, values in tensors.items():
            kind = (kinds or {}).get(name)
            writer.add_tensor(name, values if kind is None else quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def refused(path, error):
    with pytest.raises(error) as e:
        quantry.read_adapter(path)
    assert e.value.file == str(path)
    return e.value


def test_pairs_names_scales_and_architecture(write):
    adapter = quantry.read_adapter(write())
    assert (adapter.convention, adapter.architecture) == ("gguf", "llama")
    assert {name: (part.rank, part.scale, part.shape) for name, part in adapter.parts.items()} == {
        Q: (4, 2.0, (32, 64)),
        UP: (2, 4.0, (96, 64)),
    }
    assert np.array_equal(adapter.parts[Q].a, HALVES[f"{Q}.lora_a"])
    assert np.array_equal(adapter.parts[Q].b, HALVES[f"{Q}.lora_b"])


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_without_alpha_the_scale_is_1(write, alpha):
    parts = quantry.read_adapter(write(**{"adapter.lora.alpha": alpha})).parts
    assert {part.scale for part in parts.values()} == {1.0}


def test_the_users_scale_stands_apart(write):
    adapter = quantry.read_adapter(f"{write()}=-0.5")
    assert adapter.scale == -0.5
    assert adapter.parts[Q].scale == 2.0


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_dense_halves_keep_their_values(write, dtype):
    tensors = {name: values.astype(dtype) for name, values in HALVES.items()}
    parts = quantry.read_adapter(write(tensors)).parts
    assert np.array_equal(parts[UP].b.numpy(), tensors[f"{UP}.lora_b"])


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0])
def test_packed_halves_are_unpacked(write, kind):
    name = f"{Q}.lora_a"
    expected = dequantize(quantize(HALVES[name], kind), kind)
    assert np.array_equal(quantry.read_adapter(write(kinds={name: kind})).parts[Q].a, expected)


def test_the_other_byte_order(write):
    parts = quantry.read_adapter(write(endian=gguf.GGUFEndian.BIG)).parts
    assert np.array_equal(parts[Q].a, HALVES[f"{Q}.lora_a"])


def test_halves_of_the_token_table_are_the_other_way_round(write):
    """llama.cpp looks up rows of a [vocabulary, r]; row v changes by b [width, r] · a[v]."""
    a, b = RNG.standard_normal((50, 4), "f4"), RNG.standard_normal((16, 4), "f4")
    parts = quantry.read_adapter(write({"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b})).parts
    part = parts["token_embd.weight"]
    assert part.shape == (50, 16)
    assert part.scale == 2.0
    assert np.allclose(part.b @ part.a, np.stack([b @ row for row in a]), atol=1e-5)


def test_stacks_of_experts(write):
    a, b = RNG.standard_normal((3, 2, 64), "f4"), RNG.standard_normal((3, 32, 2), "f4")
    name = "blk.0.ffn_up_exps.weight"
    part = quantry.read_adapter(write({f"{name}.lora_a": a, f"{name}.lora_b": b})).parts[name]
    assert part.shape == (3, 32, 64)
    assert part.scale == 4.0


def test_norms_are_left_out_and_it_is_said(write):
    path = write({**HALVES, "blk.0.attn_norm.weight": np.ones(64, "f4")})
    with pytest.warns(UserWarning, match="1 norm weights are left out"):
        assert set(quantry.read_adapter(path).parts) == {Q, UP}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"general.type": "model"}, "'model', not an adapter"),
        ({"general.type": None}, "'model', not an adapter"),
        ({"general.type": "imatrix"}, "'imatrix', not an adapter"),
        ({"adapter.type": "control"}, "'control'; only lora"),
        ({"adapter.type": None}, "None; only lora"),
        ({"adapter.alora.invocation_tokens": [1, 2]}, "activated"),
        ({"split.count": 2}, "split"),
    ],
)
def test_what_is_no_lora_is_said(write, keys, said):
    assert said in refused(write(**keys), UsageError).problem


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "8"])
def test_an_alpha_that_is_no_number_is_named(write, alpha):
    assert "'adapter.lora.alpha'" in refused(write(**{"adapter.lora.alpha": alpha}), HeaderError).problem


def without(name):
    return {n: v for n, v in HALVES.items() if n != name}


@pytest.mark.parametrize("half", ["lora_a", "lora_b"])
def test_a_missing_half_is_named(write, half):
    error = refused(write(without(f"{UP}.{half}")), FormatError)
    assert error.tensor == f"{UP}.{half}"
    assert "missing" in error.problem


@pytest.mark.parametrize(
    ("name", "values", "error", "tensor", "said"),
    [
        (f"{Q}.lora_a", np.ones((3, 64), "f4"), ShapeError, f"{Q}.lora_b", "share no rank"),
        (f"{Q}.lora_a", np.ones(64, "f4"), FormatError, f"{Q}.lora_a", "not a matrix"),
        (f"{Q}.lora_b", np.ones((2, 32, 4), "f4"), ShapeError, f"{Q}.lora_b", "share no rank"),
        (f"{Q}.lora_b", np.ones((32, 4), "i1"), FormatError, f"{Q}.lora_b", "int8"),
        (f"{Q}.lora_b", np.full((32, 4), np.nan, "f4"), ValueDomainError, f"{Q}.lora_b", "NaN"),
        (f"{Q}.lora_a", np.full((4, 64), np.inf, "f4"), ValueDomainError, f"{Q}.lora_a", "Inf"),
        (f"{Q}.lora_c", np.ones((4, 64), "f4"), FormatError, f"{Q}.lora_c", "neither"),
        (Q, np.ones((4, 64), "f4"), FormatError, Q, "neither"),
    ],
)
def test_a_tensor_that_lies_is_named(write, name, values, error, tensor, said):
    found = refused(write({**HALVES, name: values}), error)
    assert found.tensor == tensor
    assert said in found.problem


@pytest.mark.parametrize("half", ["lora_a", "lora_b"])
def test_a_token_table_that_lies_is_named(write, half):
    tensors = {f"token_embd.weight.{h}": np.ones((8, 4), "f4") for h in ("lora_a", "lora_b")}
    error = refused(write({**tensors, f"token_embd.weight.{half}": np.ones(4, "f4")}), FormatError)
    assert error.tensor == f"token_embd.weight.{half}"


def test_a_file_without_changes_is_refused(write):
    assert "no weight" in refused(write({}), FormatError).problem


def test_every_cut_of_the_file_is_an_error_of_ours(write, tmp_path):
    whole = write().read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(4, len(whole), 37):
        path.write_bytes(whole[:size])
        refused(path, FormatError)


def test_a_file_of_something_else_is_declined_with_the_reason(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"PK\3\4")
    error = refused(path, UsageError)
    assert "gguf-lora: begins with b'PK\\x03\\x04'" in error.hint

"""What a conversion refuses, by name; the output is then the old file or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_models import MODELS, Synthetic, write_model

import quantry
from quantry import FormatError, Importance, QuantryError, UsageError, ValueDomainError
from quantry_gguf.convert import convert_gguf
from quantry_gguf.mixes import file_type
from quantry_gguf.tensor_types import TypeOptions

LLAMA = MODELS["llama of groups of 4"]
NAME = "blk.3.ffn_down.weight"


def failed(source: Path, type: str, **options: Any) -> QuantryError:
    """The error; an older output stays, and nothing else appears."""
    out = source.parent / "out" / "out.gguf"
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(b"old")
    with pytest.raises(QuantryError) as e:
        convert_gguf(source, out, TypeOptions(file_type(type)), **options)
    assert [(p.name, p.read_bytes()) for p in out.parent.iterdir()] == [("out.gguf", b"old")]
    return e.value


def with_value(folder: Path, name: str, index: tuple[int, ...], value: float) -> Path:
    """The model with one changed number, patched into the file."""
    path = write_model(folder / "in.gguf", LLAMA)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    offset = tensor.data_offset + 4 * int(np.ravel_multi_index(index, LLAMA.tensors[name]))
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(np.float32(value).tobytes())
    return path


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, type: str, value: float) -> None:
    e = failed(with_value(tmp_path, NAME, (1, 77), value), type)
    assert isinstance(e, ValueDomainError)
    assert e.tensor == NAME
    assert f"{value} at row 1, column 77" in e.problem


def test_a_norm_that_is_no_number_is_named(tmp_path: Path) -> None:
    e = failed(with_value(tmp_path, "blk.2.attn_norm.weight", (9,), np.nan), "Q8_0")
    assert (type(e), e.tensor) == (ValueDomainError, "blk.2.attn_norm.weight")
    assert "column 9" in e.problem


@pytest.mark.parametrize(("type", "value"), [("F16", 1e6), ("Q8_0", 1e30)])
def test_a_weight_too_large_for_its_type_is_named(tmp_path: Path, type: str, value: float) -> None:
    e = failed(with_value(tmp_path, NAME, (0, 3), value), type)
    assert isinstance(e, ValueDomainError)
    assert e.tensor == NAME


@pytest.mark.parametrize(
    ("weights", "tensor", "words"),
    [
        ({"blk.99.ffn_up.weight": torch.ones(256)}, "blk.99.ffn_up.weight", "the model has no such weight"),
        ({NAME: torch.ones(128)}, NAME, "importance has shape [128], the weight [2, 256]"),
        ({NAME: torch.ones(2, 256)}, NAME, "importance has shape [2, 256], the weight [2, 256]"),
        ({NAME: torch.ones(256)}, "blk.0.attn_k.weight", "which needs importance, and there is none for it"),
    ],
)
def test_importance_of_another_model_is_named(
    tmp_path: Path, weights: dict[str, torch.Tensor], tensor: str, words: str
) -> None:
    quantry.write_importance(tmp_path / "imatrix.gguf", Importance(weights))
    source = write_model(tmp_path / "in.gguf", LLAMA)
    e = failed(source, "IQ2_XXS", imatrix=tmp_path / "imatrix.gguf")
    assert isinstance(e, UsageError)
    assert e.tensor == tensor
    assert words in e.problem


def test_importance_of_another_number_of_experts_is_named(tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    quantry.write_importance(tmp_path / "imatrix.gguf", Importance({name: torch.ones(4, 256)}))
    source = write_model(tmp_path / "in.gguf", MODELS["mixtral, 8 experts"])
    e = failed(source, "Q4_K_M", imatrix=tmp_path / "imatrix.gguf")
    assert e.tensor == name
    assert "importance has shape [4, 256], the weight [8, 2, 256]" in e.problem


def test_a_damaged_source_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in.gguf", LLAMA)
    path.write_bytes(path.read_bytes()[:-4000])
    assert isinstance(failed(path, "Q8_0"), FormatError)


def test_a_nan_scale_of_a_packed_source_is_named(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", LLAMA)
    packed = tmp_path / "packed.gguf"
    convert_gguf(source, packed, TypeOptions(file_type("Q8_0")))
    tensor = next(t for t in gguf.GGUFReader(packed).tensors if t.name == NAME)
    with packed.open("r+b") as f:
        f.seek(tensor.data_offset)
        f.write(np.float16(np.nan).tobytes())
    for type in ("Q8_0", "Q4_K_M"):
        e = failed(packed, type, requantize=True)
        assert e.tensor == NAME
        assert "scale is NaN" in e.problem


def test_a_source_without_its_shape_is_named(tmp_path: Path) -> None:
    model = Synthetic("llama", {}, {"blk.0.ffn_up.weight": (2, 256)})
    assert (
        "'llama.block_count' is missing" in failed(write_model(tmp_path / "in.gguf", model), "Q8_0").problem
    )


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(tmp_path / "in.gguf", LLAMA)
    calls = []

    def write(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    monkeypatch.setattr(os, "pwrite", write)
    e = failed(source, "Q8_0")
    assert "No space left on device" in e.problem
    assert e.file == str(tmp_path / "out" / "out.gguf")


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", LLAMA)
    (tmp_path / "folder.gguf").mkdir()
    for target in (tmp_path / "no" / "out.gguf", tmp_path / "folder.gguf"):
        with pytest.raises(QuantryError) as e:
            convert_gguf(source, target, TypeOptions(file_type("Q8_0")))
        assert "cannot be written" in e.value.problem
        assert e.value.file == str(target)


def test_the_source_may_be_the_target(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", LLAMA)
    convert_gguf(source, tmp_path / "other.gguf", TypeOptions(file_type("Q8_0")))
    convert_gguf(source, source, TypeOptions(file_type("Q8_0")))
    assert source.read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_an_interrupted_conversion_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(tmp_path / "in.gguf", LLAMA)
    seen: list[str] = []

    def interrupt(done: int, total: int, name: str, tensors: int) -> None:
        seen.append(name)
        if len(seen) == 20:
            raise KeyboardInterrupt

    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(source, out, TypeOptions(file_type("Q8_0")), progress=interrupt)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]

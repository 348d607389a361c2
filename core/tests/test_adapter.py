"""`read_adapter` and `load_model(adapter=…)`: paths, scales, who reads and who builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quantry
from quantry import (
    Adapter,
    AdapterFormat,
    FormatError,
    LowRank,
    PluginError,
    Runtime,
    ShapeError,
    UsageError,
    ValueDomainError,
    hookimpl,
)
from quantry.testing.installed import installed

PART = LowRank(torch.ones(2, 8), torch.ones(4, 2), 0.5)


class Text(AdapterFormat):
    name = "text"

    def why_not(self, path):
        return None if path.suffix == ".lora" else "does not end in .lora"

    def read(self, path):
        return Adapter(path, {"w": PART})


class Echo(Runtime):
    """Gives back what it was asked to add."""

    name = "echo"

    def why_not(self, checkpoint):
        return None

    def load(self, checkpoint, *, adapters=(), **options):
        return adapters, None


class Plugin:
    @hookimpl
    def quantry_adapter_formats(self):
        return [Text()]

    @hookimpl
    def quantry_runtimes(self):
        return [Echo()]


@pytest.fixture(autouse=True)
def plugin():
    with installed(Plugin(), alone=True):
        yield


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "a.lora"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("suffix", "scale"), [("", 1.0), ("=0.5", 0.5), ("=-2", -2.0), ("=0", 0.0), ("=1e-3", 0.001)]
)
def test_a_scale_follows_the_path(lora, suffix, scale):
    adapter = quantry.read_adapter(f"{lora}{suffix}")
    assert (adapter.path, adapter.scale) == (lora, scale)


def test_a_path_that_is_there_is_a_path_whatever_it_holds(tmp_path):
    path = tmp_path / "a=3.lora"
    path.touch()
    assert quantry.read_adapter(path).scale == 1.0
    assert quantry.read_adapter(f"{path}=2").path == path


@pytest.mark.parametrize("scale", ["x", "", "nan", "inf", "-inf", "1e999"])
def test_a_scale_that_is_no_number_is_named(lora, scale):
    with pytest.raises(UsageError, match=f"'{scale}' is no scale") as e:
        quantry.read_adapter(f"{lora}={scale}")
    assert e.value.file == str(lora)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist") as e:
        quantry.read_adapter(tmp_path / "none")
    assert e.value.file == str(tmp_path / "none")


def test_what_no_format_takes_carries_each_reason(tmp_path):
    path = tmp_path / "x.bin"
    path.touch()
    with pytest.raises(UsageError) as e:
        quantry.read_adapter(path)
    assert e.value.hint == "text: does not end in .lora"


def test_without_a_format_what_to_install_is_said(lora):
    with installed(object(), alone=True), pytest.raises(PluginError) as e:
        quantry.read_adapter(lora)
    assert "quantry-peft" in e.value.hint


@pytest.fixture
def model(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(4, 8)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_load_model_hands_over_one_or_several(model, lora):
    assert quantry.load_model(model)[0] == []
    for given in (lora, str(lora), [lora]):
        (adapter,) = quantry.load_model(model, adapter=given)[0]
        assert adapter.path == lora
    scales = [a.scale for a in quantry.load_model(model, adapter=[lora, f"{lora}=0.25"])[0]]
    assert scales == [1.0, 0.25]


def test_rank_and_shape():
    assert (PART.rank, PART.shape) == (2, (4, 8))
    stack = LowRank(torch.ones(5, 2, 8), torch.ones(5, 4, 2), 1.0)
    assert (stack.rank, stack.shape) == (2, (5, 4, 8))


@pytest.mark.parametrize(
    ("a", "b", "error", "tensor"),
    [
        (torch.ones(2, 8), torch.ones(4, 3), ShapeError, "B"),
        (torch.ones(0, 8), torch.ones(4, 0), ShapeError, "B"),
        (torch.ones(2, 8), torch.ones(5, 4, 2), ShapeError, "B"),
        (torch.ones(3, 2, 8), torch.ones(5, 4, 2), ShapeError, "B"),
        (torch.ones(8), torch.ones(4, 2), FormatError, "A"),
        (torch.ones(2, 8), torch.tensor(1.0), FormatError, "B"),
        (torch.ones(2, 8, dtype=torch.int32), torch.ones(4, 2), FormatError, "A"),
        (torch.ones(2, 8) * torch.nan, torch.ones(4, 2), ValueDomainError, "A"),
        (torch.ones(2, 8), torch.ones(4, 2) / 0, ValueDomainError, "B"),
    ],
)
def test_halves_that_do_not_fit_are_named(a, b, error, tensor):
    with pytest.raises(error) as e:
        LowRank(a, b, 1.0).check(Path("x"), ("A", "B"))
    assert (e.value.file, e.value.tensor) == ("x", tensor)


def test_halves_that_fit_are_the_change_itself():
    assert PART.check(Path("x"), ("A", "B")) is PART

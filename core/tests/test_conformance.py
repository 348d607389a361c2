"""The core's own objects pass the conformance kit that plugins are asked to pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import quantry
from quantry import Dense, QuantizedTensor
from quantry.dense_codec import UnquantCodec
from quantry.dense_quantizer import QUANTIZERS
from quantry.reference import ReferenceEmbedding, ReferenceLinear, ReferenceLinearDx
from quantry.safetensors_format import SafetensorsFormat
from quantry.stream import write_safetensors
from quantry.testing import FormatSuite, KernelSuite, PluginSuite, QuantizerSuite, UqffCodecSuite
from quantry.torch_kernels import DenseEmbedding, DenseLinear, DenseLinearDx, ExpertsLoop
from quantry.uqff import UqffFormat


class TestCore(PluginSuite):
    name = "core"


class TestDenseLinear(KernelSuite):
    kernel, max_cases = DenseLinear(), 8


class TestDenseLinearDx(KernelSuite):
    kernel, max_cases = DenseLinearDx(), 8


class TestDenseEmbedding(KernelSuite):
    kernel, max_cases = DenseEmbedding(), 8


class TestExpertsLoop(KernelSuite):
    kernel, max_cases = ExpertsLoop(), 8
    layouts = (Dense("f32"), Dense("bf16"))


class TestReferenceLinear(KernelSuite):
    kernel, max_cases = ReferenceLinear(), 16


class TestReferenceLinearDx(KernelSuite):
    kernel, max_cases = ReferenceLinearDx(), 16


class TestReferenceEmbedding(KernelSuite):
    kernel, max_cases = ReferenceEmbedding(), 16


class TestF32(QuantizerSuite):
    quantizer = next(q for q in QUANTIZERS if q.name == "f32")


class TestF16(QuantizerSuite):
    quantizer = next(q for q in QUANTIZERS if q.name == "f16")


class TestBf16(QuantizerSuite):
    quantizer = next(q for q in QUANTIZERS if q.name == "bf16")


class TestUnquantCodec(UqffCodecSuite):
    codec = UnquantCodec()


def numbers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in zip(names, ((6, 8), (4, 8), (8,)), strict=True)
    }


@pytest.fixture(scope="module")
def _samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, a folder with a config, and a UQFF folder: small, so that damage hits what matters."""
    place = tmp_path_factory.mktemp("samples")
    write_safetensors(place / "one.safetensors", numbers())
    folder = place / "folder"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", numbers())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    layers = {
        name: QuantizedTensor(Dense("f32"), tuple(t.shape), {"weight": t})
        for name, t in numbers().items()
        if t.ndim == 2
    }
    quantry.save_uqff(place / "uqff" / "x.uqff", layers)
    return place


class OnSamples(FormatSuite):
    """Samples are written before the cases are used, under names known before."""

    damages = 60
    names: tuple[str, ...]

    def cases(self):
        return [Path(name) for name in self.names]

    @pytest.fixture(autouse=True)
    def _inside(self, _samples, monkeypatch):
        monkeypatch.chdir(_samples)


class TestSafetensors(OnSamples):
    format = SafetensorsFormat()
    names = ("one.safetensors", "folder")

    def values(self, sample):
        return numbers()


class TestUqff(OnSamples):
    format = UqffFormat()
    names = ("uqff",)

    def values(self, sample):
        return {name: t for name, t in numbers().items() if t.ndim == 2}

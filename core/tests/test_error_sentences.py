"""The sentences that users read, frozen: each error is made once, by the mistake that leads to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import quantry
from quantry import GroupedAffine, Numerics, QuantizedTensor, QuantryError, hookimpl
from quantry.errors import KernelError, NoKernelError
from quantry.stream import StreamWriter, write_safetensors
from quantry.testing.fake_device import fake_device
from quantry.testing.installed import installed

AFFINE = GroupedAffine(4, 32, "in", "int", "f16")


def packed() -> QuantizedTensor:
    buffers = {
        "codes": torch.zeros(8, 32, dtype=torch.uint8),
        "scales": torch.ones(8, 2, dtype=torch.float16),
        "zeros": torch.zeros(8, 2, dtype=torch.uint8),
    }
    return QuantizedTensor(AFFINE, (8, 64), buffers)


def weights(folder: Path, cut: int = 0) -> Path:
    path = folder / "tiny.safetensors"
    write_safetensors(
        path, {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 8), "norm.weight": torch.ones(8)}
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    return path


def renamed(folder: Path, old: bytes, new: bytes) -> Path:
    path = weights(folder)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def text_file(folder: Path, name: str, content: str = "hello") -> Path:
    (folder / name).write_text(content)
    return folder / name


def folder_of_method(folder: Path, method: str) -> Path:
    weights(folder)
    text_file(folder, "config.json", json.dumps({"quantization_config": {"quant_method": method}}))
    return folder


def kernel_that_fails() -> object:
    from quantry.reference import ReferenceLinear

    class Breaks(ReferenceLinear):
        name, priority, reference, family = "broken.linear", 10, False, "affine"

        def matmul(self, x, w, layout, shape, bias):
            raise RuntimeError("misaligned address")

    class Plugin:
        @hookimpl
        def quantry_kernels(self):
            return [Breaks()]

    with installed(Plugin(), "broken", alone=True):
        return quantry.matmul(torch.ones(1, 64), packed())


def no_kernel() -> object:
    from quantry.reference import ReferenceLinear

    class Declines(ReferenceLinear):
        name, priority, reference, family = "rows.linear", 10, False, "affine"

        def why_not(self, problem):
            return f"needs signed 8-bit codes with one scale per row, got {problem.layout}"

    class Rounds(ReferenceLinear):
        name, priority, reference, family = "rounding.linear", 10, False, "affine"
        numerics = Numerics(accumulate="i32", activations="int8")

    class Plugin:
        @hookimpl
        def quantry_kernels(self):
            return [Declines(), Rounds()]

    with installed(Plugin(), "rows", alone=True):
        return quantry.matmul(torch.ones(1, 64), packed())


def on_fake_device() -> object:
    with fake_device():
        return quantry.explain(packed(), device="fake:2")


def incomplete(folder: Path) -> None:
    with StreamWriter(folder / "out.safetensors", {"w": quantry.BufferSpec("f32", (4,))}) as out:
        out.write("w", torch.ones(2))


# name → what a user does wrong, given a temporary folder
MISTAKES: dict[str, Callable[[Path], object]] = {
    "no such file": lambda d: quantry.open(d / "nowhere.gguf"),
    "no such hub id or folder": lambda d: quantry.open("./nowhere"),
    "nothing recognises a text file": lambda d: quantry.open(text_file(d, "notes.txt")),
    "a pickle": lambda d: quantry.open(text_file(d, "model.bin")),
    "a gguf file without the plugin": lambda d: quantry.open(text_file(d, "model.gguf")),
    "a gptq folder without the plugin": lambda d: quantry.open(folder_of_method(d, "gptq")),
    "an unknown method": lambda d: quantry.open(folder_of_method(d, "mystery")),
    "safetensors cut short": lambda d: quantry.open(weights(d, cut=20)),
    "safetensors cut in the header": lambda d: quantry.open(weights(d, cut=250)),
    "safetensors of an unknown dtype": lambda d: quantry.open(renamed(d, b'"F32"', b'"F33"')),
    "safetensors with lying offsets": lambda d: quantry.open(renamed(d, b"[0,128]", b"[0,124]")),
    "a config that is no json": lambda d: quantry.open(
        text_file(weights(d).parent, "config.json", "{").parent
    ),
    "an unknown tensor": lambda d: quantry.open(weights(d))["model.layers.0.mlp.upproj.weight"],
    "an unknown numerics": lambda d: quantry.explain(packed(), numerics="loose"),
    "an unknown kernel": lambda d: quantry.use("torch.liner").__enter__(),
    "an unknown device": lambda d: quantry.explain(packed(), device="cdua"),
    "a device that is not there": lambda d: on_fake_device(),
    "an unknown layout family": lambda d: quantry.registry().layout("afine:b4"),
    "a malformed layout": lambda d: quantry.registry().layout("affine:b4,128,in,int,f16"),
    "an unknown isq type": lambda d: quantry.quantize(torch.ones(4, 32), "q4_l"),
    "a width nobody gives": lambda d: quantry.quantize(torch.ones(4, 32), "4"),
    "a wrong shape of x": lambda d: quantry.matmul(torch.ones(2, 63), packed()),
    "integer activations": lambda d: quantry.matmul(torch.ones(2, 64, dtype=torch.int32), packed()),
    "a layout that cannot hold a shape": lambda d: QuantizedTensor(
        GroupedAffine(4, 128, "out", "none", "f16"), (3, 5), {}
    ),
    "a missing buffer": lambda d: QuantizedTensor(
        AFFINE, (8, 64), {"codes": torch.zeros(8, 32, dtype=torch.uint8)}
    ),
    "a slice off the grid": lambda d: packed().narrow(-1, 3, 8),
    "a conversion that does not exist": lambda d: packed().convert("dense:f32"),
    "no kernel": lambda d: no_kernel(),
    "a kernel that fails": lambda d: kernel_that_fails(),
    "no runtime": lambda d: quantry.load_model(weights(d)),
    "a file left incomplete": incomplete,
}


class Nothing:
    @hookimpl
    def quantry_kernels(self):
        return []


@pytest.fixture(autouse=True)
def core_alone(monkeypatch) -> Iterator[None]:
    """As if no plugin were installed, so that the sentences do not depend on the environment."""
    monkeypatch.setattr("quantry.hints._installed", lambda dist: False)
    with installed(Nothing(), alone=True):
        yield


@pytest.mark.parametrize("name", MISTAKES)
def test_error_sentence(name, tmp_path, snapshot):
    with pytest.raises(QuantryError) as caught:
        MISTAKES[name](tmp_path)
    said = f"{type(caught.value).__name__}: {caught.value}".replace(str(tmp_path), "<folder>")
    assert said == snapshot


def test_no_kernel_error_carries_every_candidate():
    with pytest.raises(NoKernelError) as caught:
        MISTAKES["no kernel"](Path())
    assert (
        "reference",
        'disabled (set reference="allow" to permit the slow tile-wise path)',
    ) in caught.value.candidates


def test_kernel_error_is_chained_to_its_cause():
    with pytest.raises(KernelError) as caught:
        MISTAKES["a kernel that fails"](Path())
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_errors_keep_their_fields_through_pickle():
    import pickle

    error = quantry.OffsetError("ends late", file="a.gguf", tensor="w", offset=7, hint="Fetch it.")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 our own bytes
    assert (again.file, again.tensor, again.offset, again.hint, str(again)) == (
        "a.gguf",
        "w",
        7,
        "Fetch it.",
        str(error),
    )

"""The conformance kit finds what it is for: each deliberately wrong object fails the fact it breaks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from quantry import (
    BufferSpec,
    Conversion,
    Dense,
    Detection,
    Format,
    FormatError,
    GroupedAffine,
    Kernel,
    KernelError,
    Layout,
    Numerics,
    QuantizedTensor,
    TensorEntry,
    UqffCodec,
)
from quantry.dense_codec import UnquantCodec
from quantry.testing import (
    ConversionSuite,
    FormatSuite,
    KernelSuite,
    UqffCodecSuite,
    failed_facts,
    mutated,
    mutations,
    outcomes,
    suite_of,
)

LAYOUTS = [GroupedAffine(4, 32, "in", "mid", "f32"), GroupedAffine(3, 0, "in", "float", "f16", perm=True)]


class Good(Kernel):
    """Dequantizes and multiplies: right, and so the base of every wrong one."""

    name, op, family, device = "good.linear", "linear", "affine", "cpu"
    numerics = Numerics(deterministic=False)

    def why_not(self, problem):
        return None if len(problem.shape) == 2 else "takes one matrix"

    def matmul(self, x, w, layout, shape, bias):
        dense = layout.dequantize(dict(zip(layout.buffers(shape), w, strict=True)), shape)
        y = x.float() @ dense.T
        return (y if bias is None else y + bias.float()).to(x.dtype)


class SlightlyOff(Good):
    def matmul(self, x, w, layout, shape, bias):
        return super().matmul(x * 1.01, w, layout, shape, bias)


class LastColumnLost(Good):
    def matmul(self, x, w, layout, shape, bias):
        short = x.clone()
        short[..., -1] = 0
        return super().matmul(short, w, layout, shape, bias)


class NoBias(Good):
    def matmul(self, x, w, layout, shape, bias):
        return super().matmul(x, w, layout, shape, None)


class IgnoresStrides(Good):
    def matmul(self, x, w, layout, shape, bias):
        flat = torch.as_strided(x, x.shape, torch.empty(x.shape).stride(), x.storage_offset())
        return super().matmul(flat, w, layout, shape, bias)


class FlattensBatches(Good):
    def matmul(self, x, w, layout, shape, bias):
        return super().matmul(x.reshape(-1, x.shape[-1]), w, layout, shape, bias)


class FailsOnNothing(Good):
    def matmul(self, x, w, layout, shape, bias):
        if not x.numel():
            raise KernelError("nothing to multiply")
        return super().matmul(x, w, layout, shape, bias)


class ScalesItsInput(Good):
    def matmul(self, x, w, layout, shape, bias):
        return super().matmul(x.mul_(2), w, layout, shape, bias) / 2


class GivesFloat32(Good):
    def matmul(self, x, w, layout, shape, bias):
        return super().matmul(x, w, layout, shape, bias).float()


class RoundsButSaysExact(Good):
    def matmul(self, x, w, layout, shape, bias):
        step = x.abs().amax(-1, keepdim=True).float() / 127
        return super().matmul((torch.round(x / step) * step).to(x.dtype), w, layout, shape, bias)


class NeverTheSameBits(Good):
    numerics = Numerics(deterministic=True)
    calls = 0

    def matmul(self, x, w, layout, shape, bias):
        type(self).calls += 1
        y = super().matmul(x.float(), w, layout, shape, bias)
        return (y * (1 + torch.finfo(x.dtype).eps * (self.calls % 2))).to(x.dtype)


class RefusesWithOneWord(Good):
    def why_not(self, problem):
        return "no" if problem.rows > 4 else None


class RefusesByRaising(Good):
    def why_not(self, problem):
        if problem.dtype == "f64":
            raise KeyError(problem.dtype)
        return


class RefusesEverything(Good):
    def why_not(self, problem):
        return "not on a Tuesday"


IMPORTS = "its module imports no torch"  # this file does


def kernel_suite(kernel: type[Kernel]) -> object:
    return suite_of(KernelSuite, kernel=kernel(), layouts=LAYOUTS, max_cases=10)


def test_a_right_kernel_passes_every_fact():
    assert failed_facts(kernel_suite(Good)) <= {IMPORTS}


def test_a_module_that_imports_torch_is_named():
    found = list(outcomes(kernel_suite(Good), "its module imports no torch"))
    assert [o.result for o in found] == ["failed"]
    assert "imports torch" in found[0].message


@pytest.mark.parametrize(
    ("kernel", "fact"),
    [
        (SlightlyOff, "equals the definition"),
        (LastColumnLost, "equals the definition"),
        (RoundsButSaysExact, "equals the definition"),
        (GivesFloat32, "equals the definition"),
        (NoBias, "adds the bias"),
        (IgnoresStrides, "takes strided inputs"),
        (FlattensBatches, "takes batch dimensions"),
        (FailsOnNothing, "takes no rows"),
        (ScalesItsInput, "leaves its inputs alone"),
        (NeverTheSameBits, "runs in threads"),
        (RefusesWithOneWord, "refusals are sentences"),
        (RefusesByRaising, "refusals are sentences"),
        (RefusesEverything, "it accepts something"),
    ],
)
def test_a_wrong_kernel_fails_the_fact_it_breaks(kernel: type[Kernel], fact: str):
    assert fact in failed_facts(kernel_suite(kernel), fact)


def test_a_kernel_that_states_its_rounding_passes():
    class Rounds(RoundsButSaysExact):
        numerics = Numerics("f32", "int8", deterministic=False)

    assert failed_facts(kernel_suite(Rounds), "equals the definition") <= {IMPORTS}


def test_a_kernel_of_an_absent_device_is_skipped_with_the_reason():
    class Elsewhere(Good):
        device = "nowhere"

    skipped = [o for o in outcomes(suite_of(KernelSuite, kernel=Elsewhere())) if o.result == "skipped"]
    assert any("nowhere" in o.message for o in skipped)


def rescaled(layout, old, new):
    fits = isinstance(layout, GroupedAffine) and (layout.scale, layout.zero, layout.perm) == (
        old,
        "mid",
        False,
    )
    return GroupedAffine(layout.bits, layout.group, layout.axis, "mid", new) if fits else None


class Widen(Conversion):
    """f16 scales as f32: exact."""

    source = target = "affine"

    def target_for(self, layout, shape):
        return rescaled(layout, "f16", "f32")

    def convert(self, qt, target):
        return QuantizedTensor(target, qt.shape, {**qt.buffers, "scales": qt.buffers["scales"].float()})


class Narrow(Widen):
    """f32 scales as bf16: not exact."""

    def target_for(self, layout, shape):
        return rescaled(layout, "f32", "bf16")

    def convert(self, qt, target):
        return QuantizedTensor(target, qt.shape, {**qt.buffers, "scales": qt.buffers["scales"].bfloat16()})


class Announces(Widen):
    def convert(self, qt, target):
        return qt


class RaisesOnOthers(Widen):
    def target_for(self, layout, shape):
        return super().target_for(layout, shape) if layout.scale else None


def test_an_exact_conversion_passes():
    assert failed_facts(suite_of(ConversionSuite, conversion=Widen())) <= {IMPORTS}


@pytest.mark.parametrize(
    ("conversion", "fact"),
    [
        (Narrow, "changes no number"),
        (Announces, "gives what it announces"),
        (RaisesOnOthers, "declines without raising"),
    ],
)
def test_a_wrong_conversion_fails_the_fact_it_breaks(conversion: type[Conversion], fact: str):
    assert fact in failed_facts(suite_of(ConversionSuite, conversion=conversion()), fact)


class SaysAnotherShape(UnquantCodec):
    def entries(self, layout, shape):
        return {"": BufferSpec(layout.dtype, (*shape, 1))}


class ReadsAnything(UnquantCodec):
    def layout_of(self, specs, small):
        dtype, shape = specs[""]
        return Dense(dtype), shape


class LosesTheType(UnquantCodec):
    def layout_of(self, specs, small):
        dtype, shape = specs[""]
        if dtype not in ("f32", "f16", "bf16", "f64"):
            raise FormatError("not a float")
        return Dense("f32"), shape


def test_the_core_codec_passes():
    assert failed_facts(suite_of(UqffCodecSuite, codec=UnquantCodec())) <= {IMPORTS}


@pytest.mark.parametrize(
    ("codec", "fact"),
    [
        (SaysAnotherShape, "announces its entries"),
        (ReadsAnything, "refuses entries that lie"),
        (LosesTheType, "reads back what it writes"),
    ],
)
def test_a_wrong_codec_fails_the_fact_it_breaks(codec: type[UqffCodec], fact: str):
    assert fact in failed_facts(suite_of(UqffCodecSuite, codec=codec()), fact)


class Raw(Format):
    """`RAW1`, a count, and so many float32."""

    name = "raw"

    def detect(self, source):
        names = source.with_suffix(".raw")
        if not names or source.file(names[0]).size < 8 or source.file(names[0]).read(0, 4) != b"RAW1":
            return None
        return Detection(self.name, 100, "begins with RAW1", {"file": names[0]})

    def entries(self, source, detection):
        mapped = source.file(detection.facts["file"])
        count = int.from_bytes(mapped.read(4, 4), "little")
        mapped.read(8 + 4 * count, 0)
        yield TensorEntry("weight", Dense("f32"), (1, count), place=mapped)

    def load(self, entry, rows=None):
        weight = entry.place.tensor(8, BufferSpec("f32", entry.shape))
        return QuantizedTensor(entry.layout, entry.shape, {"weight": weight})


class ClaimsEverything(Raw):
    def detect(self, source):
        return super().detect(source) or Detection(self.name, 1, "who knows", {"file": source.files[:1]})


class TrustsTheCount(Raw):
    def entries(self, source, detection):
        mapped = source.file(detection.facts["file"])
        count = int.from_bytes(mapped.read(4, 4), "little")
        weight = struct.unpack(f"<{min(count, 1000)}f", mapped.read(8, mapped.size - 8))
        yield TensorEntry("weight", Dense("f32"), (1, len(weight)), place=mapped)


class ListsAnotherShape(Raw):
    def load(self, entry, rows=None):
        qt = super().load(entry, rows)
        return QuantizedTensor(qt.layout, (entry.shape[1], 1), {"weight": qt.buffers["weight"].view(-1, 1)})


class CountsFromOne(Raw):
    def load(self, entry, rows=None):
        qt = super().load(entry, rows)
        return QuantizedTensor(qt.layout, qt.shape, {"weight": qt.buffers["weight"] + 1})


def format_suite(format: type[Format], folder: Path) -> object:
    path = folder / "tiny.raw"
    path.write_bytes(b"RAW1" + (6).to_bytes(4, "little") + struct.pack("<6f", *range(6)))
    values = {"weight": torch.arange(6.0).view(1, 6)}
    return suite_of(FormatSuite, format=format(), samples=[path], values=lambda self, sample: values)


def test_a_right_format_passes(tmp_path: Path):
    assert failed_facts(format_suite(Raw, tmp_path)) <= {IMPORTS}


@pytest.mark.parametrize(
    ("format", "fact"),
    [
        (ClaimsEverything, "leaves foreign files alone"),
        (TrustsTheCount, "damage is a format error"),
        (ListsAnotherShape, "lists what it loads"),
        (CountsFromOne, "gives the known numbers"),
    ],
)
def test_a_wrong_format_fails_the_fact_it_breaks(format: type[Format], fact: str, tmp_path: Path):
    assert fact in failed_facts(format_suite(format, tmp_path), fact)


def test_mutations_are_many_different_and_the_same_each_time():
    data = bytes(range(256)) * 8
    one, two = (list(mutations(data, 50)) for _ in range(2))
    assert one == two
    assert len({damaged for _, damaged in one}) > 50
    assert all(damaged != data for what, damaged in one if what.startswith(("cut", "bit", "8 bytes")))


@given(st.data())
def test_the_mutated_strategy_gives_bytes_near_the_original(data: st.DataObject):
    damaged = data.draw(mutated(bytes(100)))
    assert len(damaged) <= 100 + 24


def test_random_weights_exist_for_every_known_layout():
    from quantry.testing import known_layouts, random_weight

    families: Sequence[str] = ("affine", "codebook", "float", "dense")
    make: Callable[[Layout], QuantizedTensor] = lambda layout: random_weight(layout, (128, 256))  # noqa: E731
    for layout in (layout for family in families for layout in known_layouts(family)[::7]):
        dense = make(layout).dequantize()
        assert dense.isfinite().all(), layout
        assert dense.std() > 0, layout

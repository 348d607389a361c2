"""The conformance kit finds what it is for: each deliberately wrong object fails the fact it breaks, and only good ones pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from quantry import (
    BufferSpec,
    Conversion,
    Dense,
    FormatError,
    GroupedAffine,
    Kernel,
    KernelError,
    Layout,
    Numerics,
    QuantizedTensor,
    Quantizer,
    UqffCodec,
    ValueDomainError,
)
from quantry.dense_codec import UnquantCodec
from quantry.testing import ConversionSuite, KernelSuite, QuantizerSuite, UqffCodecSuite, outcomes

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
        return (y * (1 + 2.0**-23 * (self.calls % 3))).to(x.dtype)


class RefusesWithOneWord(Good):
    def why_not(self, problem):
        return "no" if problem.rows > 4 else None


class RefusesByRaising(Good):
    def why_not(self, problem):
        if problem.dtype == "f64":
            raise KeyError(problem.dtype)
        return None


class RefusesEverything(Good):
    def why_not(self, problem):
        return "not on a Tuesday"


def suite(base: type, **attributes: object) -> object:
    return type(base.__name__, (base,), attributes)()


def failed(checked: object) -> set[str]:
    return {o.fact for o in outcomes(checked) if o.result == "failed"}


def kernel_facts(kernel: type[Kernel]) -> set[str]:
    return failed(suite(KernelSuite, kernel=kernel(), layouts=LAYOUTS, max_cases=10))


def test_a_right_kernel_passes_every_fact():
    assert kernel_facts(Good) == set()


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
    assert fact in kernel_facts(kernel)


def test_a_kernel_that_states_its_rounding_passes():
    class Rounds(RoundsButSaysExact):
        numerics = Numerics("f32", "int8", deterministic=False)

    assert kernel_facts(Rounds) == set()


def test_a_kernel_of_an_absent_device_is_skipped_with_the_reason():
    class Elsewhere(Good):
        device = "nowhere"

    skipped = [o for o in outcomes(suite(KernelSuite, kernel=Elsewhere())) if o.result == "skipped"]
    assert any("nowhere" in o.message for o in skipped)


class Widen(Conversion):
    """f16 scales as f32: exact."""

    source = target = "affine"

    def target_for(self, layout, shape):
        fits = isinstance(layout, GroupedAffine) and layout.scale == "f16" and layout.zero == "mid" and not layout.perm
        return GroupedAffine(layout.bits, layout.group, layout.axis, "mid", "f32") if fits else None

    def convert(self, qt, target):
        return QuantizedTensor(target, qt.shape, {**qt.buffers, "scales": qt.buffers["scales"].float()})


class Narrow(Widen):
    """f32 scales as bf16: not exact."""

    def target_for(self, layout, shape):
        fits = isinstance(layout, GroupedAffine) and layout.scale == "f32" and layout.zero == "mid" and not layout.perm
        return GroupedAffine(layout.bits, layout.group, layout.axis, "mid", "bf16") if fits else None

    def convert(self, qt, target):
        return QuantizedTensor(target, qt.shape, {**qt.buffers, "scales": qt.buffers["scales"].bfloat16()})


class Announces(Widen):
    def convert(self, qt, target):
        return qt


class RaisesOnOthers(Widen):
    def target_for(self, layout, shape):
        return super().target_for(layout, shape) if layout.scale else None


def test_an_exact_conversion_passes():
    assert failed(suite(ConversionSuite, conversion=Widen())) == set()


@pytest.mark.parametrize(
    ("conversion", "fact"),
    [
        (Narrow, "changes no number"),
        (Announces, "gives what it announces"),
        (RaisesOnOthers, "declines without raising"),
    ],
)
def test_a_wrong_conversion_fails_the_fact_it_breaks(conversion: type[Conversion], fact: str):
    assert fact in failed(suite(ConversionSuite, conversion=conversion()))


class Rtn(Quantizer):
    """8 bits, one scale per row."""

    name = "rtn8"

    def why_not(self, shape, dtype):
        if dtype not in ("f32", "f16", "bf16"):
            return f"made from floats, not from {dtype}"
        return None if len(shape) == 2 and min(shape) > 0 else "needs a matrix that is not empty"

    def layout_for(self, shape, dtype):
        return GroupedAffine(8, 0, "in", "mid", "f32")

    def quantize(self, weight, layout, stats=None):
        from quantry import ShapeError

        reason = self.why_not(tuple(weight.shape), "f32")
        if reason is not None:
            raise ShapeError(reason)
        self.check(weight)
        scales = self.scales(weight.float())
        codes = (weight.float() / scales.clamp_min(1e-30)).round().clamp(-128, 127) + 128
        return QuantizedTensor(layout, tuple(weight.shape), {"codes": codes.to(torch.uint8), "scales": scales})

    def check(self, weight: Tensor) -> None:
        if not weight.isfinite().all():
            row, column = (~weight.isfinite()).nonzero()[0].tolist()
            raise ValueDomainError(f"row {row}, column {column} is not finite")

    def scales(self, weight: Tensor) -> Tensor:
        return weight.abs().amax(-1, keepdim=True) / 127


class LetsNanIn(Rtn):
    def check(self, weight):
        return None


class LooksAtAllRows(Rtn):
    def scales(self, weight):
        return (weight.abs().max() / 127).expand(len(weight), 1).contiguous()


class FarOff(Rtn):
    def scales(self, weight):
        return super().scales(weight) * 40


class NamesTheUnknown(Rtn):
    fallback = ("rtn9",)


def test_a_right_quantizer_passes():
    assert failed(suite(QuantizerSuite, quantizer=Rtn())) == set()


@pytest.mark.parametrize(
    ("quantizer", "fact"),
    [
        (LetsNanIn, "refuses nan and inf by place"),
        (LooksAtAllRows, "rows may be cut at its row block"),
        (FarOff, "stays close"),
        (NamesTheUnknown, "the types it names exist"),
    ],
)
def test_a_wrong_quantizer_fails_the_fact_it_breaks(quantizer: type[Quantizer], fact: str):
    assert fact in failed(suite(QuantizerSuite, quantizer=quantizer()))


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
    assert failed(suite(UqffCodecSuite, codec=UnquantCodec())) == set()


@pytest.mark.parametrize(
    ("codec", "fact"),
    [
        (SaysAnotherShape, "announces its entries"),
        (ReadsAnything, "refuses entries that lie"),
        (LosesTheType, "reads back what it writes"),
    ],
)
def test_a_wrong_codec_fails_the_fact_it_breaks(codec: type[UqffCodec], fact: str):
    assert fact in failed(suite(UqffCodecSuite, codec=codec()))


def test_random_weights_exist_for_every_known_layout():
    from quantry.testing import known_layouts, random_weight

    families: Sequence[str] = ("affine", "codebook", "float", "dense")
    make: Callable[[Layout], QuantizedTensor] = lambda layout: random_weight(layout, (128, 256))  # noqa: E731
    for layout in (layout for family in families for layout in known_layouts(family)[::7]):
        dense = make(layout).dequantize()
        assert dense.isfinite().all(), layout
        assert dense.std() > 0, layout

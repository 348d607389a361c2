"""The conformance kit of quantizers: each deliberately wrong one fails the fact it breaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantry import GroupedAffine, QuantizedTensor, Quantizer, ValueDomainError, importance_rows
from quantry.testing import QuantizerSuite, failed_facts, suite_of

IMPORTS = "its module imports no torch"  # this file does


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
        return QuantizedTensor(
            layout, tuple(weight.shape), {"codes": codes.to(torch.uint8).contiguous(), "scales": scales}
        )

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


class Weighs(Rtn):
    """Takes the least weighted error of a few scales a row."""

    takes_importance = True

    def quantize(self, weight, layout, stats=None):
        importance = self.importance(stats, tuple(weight.shape))
        self.share = torch.ones(len(weight), 1)
        best = super().quantize(weight, layout)
        if importance is None:
            return best
        shares, least = self.share, self.error(best, weight, importance)
        for share in torch.linspace(0.8, 1, 9):
            self.share = share.expand(len(weight), 1)
            error = self.error(super().quantize(weight, layout), weight, importance)
            shares, least = torch.where(error < least, share, shares), torch.minimum(error, least)
        self.share = shares
        return super().quantize(weight, layout)

    def importance(self, stats, shape):
        rows = importance_rows(stats, shape)
        return None if rows is None else rows[0]

    def error(self, made, weight, importance):
        off = (made.dequantize() - weight.float()).square() * importance
        return off.sum(-1, keepdim=True)

    def scales(self, weight):
        return super().scales(weight) * self.share


class WeighsUpsideDown(Weighs):
    def error(self, made, weight, importance):
        return -super().error(made, weight, importance)


class FeelsTheSizeOfImportance(Weighs):
    def importance(self, stats, shape):
        return None if stats is None else super().importance(stats, shape).clamp(max=1)


class DividesByTheSum(Weighs):
    def importance(self, stats, shape):
        found = super().importance(stats, shape)
        self.one = 1 if found is None else found.sum() / found.sum()
        return found

    def scales(self, weight):
        return super().scales(weight) * self.one


class DividesByEach(DividesByTheSum):
    def importance(self, stats, shape):
        found = super().importance(stats, shape)
        self.one = 1 if found is None else (found / found).mean()
        return found


class MixesRows(Weighs):
    def importance(self, stats, shape):
        self.mixed = stats is not None
        return super().importance(stats, shape)

    def scales(self, weight):
        scales = super().scales(weight)
        return scales.max().expand(len(weight), 1).contiguous() if self.mixed else scales


class TakesAnyImportance(Weighs):
    def importance(self, stats, shape):
        return stats


@pytest.mark.parametrize("quantizer", [Rtn, Weighs])
def test_a_right_quantizer_passes(quantizer: type[Quantizer]):
    assert failed_facts(suite_of(QuantizerSuite, quantizer=quantizer())) <= {IMPORTS}


@pytest.mark.parametrize(
    ("quantizer", "fact"),
    [
        (LetsNanIn, "refuses nan and inf by place"),
        (LooksAtAllRows, "rows may be cut at its row block"),
        (FarOff, "stays close"),
        (NamesTheUnknown, "the types it names exist"),
        (WeighsUpsideDown, "importance lowers the error that it weighs"),
        (FeelsTheSizeOfImportance, "only ratios of importance count"),
        (DividesByTheSum, "equal and zero importance are no preference"),
        (DividesByEach, "columns of no importance stay finite"),
        (MixesRows, "rows are weighed alone"),
        (TakesAnyImportance, "refuses what is no importance"),
    ],
)
def test_a_wrong_quantizer_fails_the_fact_it_breaks(quantizer: type[Quantizer], fact: str):
    assert fact in failed_facts(suite_of(QuantizerSuite, quantizer=quantizer()), fact)

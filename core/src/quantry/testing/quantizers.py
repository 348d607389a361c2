"""Conformance of a quantizer: the announced layout, equal bytes however rows are cut, no NaN let in."""

from __future__ import annotations

import re
import unittest
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from quantry.errors import QuantryError, ShapeError, ValueDomainError
from quantry.layout import Layout, Shape
from quantry.plugins import registry
from quantry.quantizer import Quantizer, canonical_name
from quantry.tensor import QuantizedTensor
from quantry.testing.suite import Suite, assert_pure_import, assert_sentence

__all__ = ["QuantizerSuite"]

_SHAPES: Sequence[Shape] = (
    (16, 256),
    (17, 1024),
    (600, 256),
    (1, 64),
    (5, 96),
    (3, 72),
    (7, 31),
    (2, 16, 256),
)
_NEAR = 0.03  # of a declared error: a quarter of a million normal weights give it to a per cent
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class QuantizerSuite(Suite):
    """Subclass it and name a quantizer.

    max_error: bound on |w - dequantized| / |w| in the root mean square, for normal weights; None derives a
    wide one from the bits per weight and the declared error. Override `stats` where `needs` is not "none" or
    "importance". zero_is_no_preference: False for a type whose published rule makes anything finite of a
    weight whose importance is 0 throughout.
    """

    quantizer: ClassVar[Quantizer]
    shapes: ClassVar[Sequence[Shape]] = _SHAPES
    max_error: ClassVar[float | None] = None
    zero_is_no_preference: ClassVar[bool] = True

    def stats(self, shape: Shape, seed: int) -> Tensor | None:
        """What calibration would give."""
        if self.quantizer.needs == "none":
            return None
        if self.quantizer.needs == "importance":
            return torch.rand(shape[-1], generator=torch.Generator().manual_seed(seed)) + 0.1
        raise unittest.SkipTest(f"{self.quantizer.name} needs {self.quantizer.needs}: override `stats`")

    def cases(self) -> Sequence[Shape]:
        """Shapes it takes."""
        return [shape for shape in self.shapes if self.quantizer.why_not(shape, "f32") is None]

    def test_it_takes_something(self) -> None:
        assert self.cases(), f"{self.quantizer.name} takes none of {list(self.shapes)}; name its `shapes`"

    def test_gives_what_it_announces(self, case: Shape) -> None:
        for name, dtype in _DTYPES.items():
            if self.quantizer.why_not(case, name) is not None:
                continue
            layout = self.quantizer.layout_for(case, name)
            qt = self.quantizer.quantize(_normal(case).to(dtype), layout, self.stats(case, 2))
            where = f"{self.quantizer.name} of {name} {list(case)}"
            assert qt.layout == layout, f"{where}: announces {layout}, gives {qt.layout}"
            assert qt.shape == case, f"{where}: gives shape {list(qt.shape)}"

    def test_stays_close(self, case: Shape) -> None:
        self._assert_close(self._packed(_normal(case)), f"{self.quantizer.name} {list(case)}")

    def test_its_declared_error_is_what_it_makes(self) -> None:
        q, shape = self.quantizer, (64, 4096)
        if q.expected_error is None or q.why_not(shape, "f32") is not None:
            return
        weight = _normal(shape)
        stats = torch.ones(shape[-1]) if q.needs == "importance" else None
        qt = q.quantize(weight, q.layout_for(shape, "f32"), stats)
        off = float((qt.dequantize() - weight).square().mean().sqrt() / weight.square().mean().sqrt())
        near = abs(off / q.expected_error - 1) <= _NEAR
        assert near, f"{q.name}: declares an error of {q.expected_error:.3g}, makes {off:.3g}"

    def test_gives_equal_bytes_twice(self, case: Shape) -> None:
        weight = _normal(case)
        before = weight.clone()
        where = f"{self.quantizer.name} {list(case)}"
        _assert_same(self._packed(weight), self._packed(weight), f"{where}: the second time")
        assert torch.equal(weight, before), f"{where}: wrote to its input"

    def test_rows_may_be_cut_at_its_row_block(self, case: Shape) -> None:
        block = self.quantizer.row_block
        if block is None or len(case) != 2:
            return  # needs the whole matrix
        weight = _normal(case)
        whole = self._packed(weight)
        for start in range(0, case[0], block):
            length = min(block, case[0] - start)
            part = self._packed(weight[start : start + length].clone())
            where = f"{self.quantizer.name} {list(case)}: rows {start}:{start + length} alone"
            _assert_same(part, whole.narrow(0, start, length), where)

    def test_takes_strided_weights(self, case: Shape) -> None:
        weight = _normal(case)
        turned = weight.transpose(-1, -2).contiguous().transpose(-1, -2)
        _assert_same(
            self._packed(turned), self._packed(weight), f"{self.quantizer.name} {list(case)}: strided"
        )

    def test_zeros_stay_zero(self, case: Shape) -> None:
        dense = self._packed(torch.zeros(case)).dequantize()
        worst = dense.abs().max()
        assert worst == 0, f"{self.quantizer.name} {list(case)}: zeros become {worst}"

    def test_refuses_nan_and_inf_by_place(self, case: Shape) -> None:
        for bad in (float("nan"), float("inf"), float("-inf")):
            weight = _normal(case)
            weight.view(-1, case[-1])[-1, 3] = bad
            where = f"{self.quantizer.name} {list(case)} with {bad}"
            try:
                self._packed(weight)
            except ValueDomainError as e:
                message = str(e)
            else:
                raise AssertionError(f"{where}: accepted")
            named = {int(n) for n in re.findall(r"\d+", message)}
            rows = {case[-2] - 1, weight.numel() // case[-1] - 1}  # of its matrix, or of all
            fine = 3 in named and named & rows
            assert fine, f"{where}: {message} does not name row {case[-2] - 1}, column 3"

    def test_importance_lowers_the_error_that_it_weighs(self, case: Shape) -> None:
        if not self.quantizer.takes_importance:
            return
        weight, importance = _normal(case), _importance(case)
        plain, weighed = (
            ((qt.dequantize() - weight).double().square() * importance).view(-1, *case[-2:]).sum((-1, -2))
            for qt in (self._packed(weight), self._packed(weight, importance))
        )
        what = f"weighted error {weighed.tolist()}, without importance {plain.tolist()}"
        assert (weighed <= plain).all(), f"{self.quantizer.name} {list(case)}: {what}"

    def test_only_ratios_of_importance_count(self, case: Shape) -> None:
        if not self.quantizer.takes_importance:
            return
        weight, importance = _normal(case), _importance(case)
        once = self._packed(weight, importance)
        for power in (-20, 3, 20):
            where = f"{self.quantizer.name} {list(case)}: importance times 2^{power}"
            _assert_same(self._packed(weight, importance * 2.0**power), once, where)

    def test_equal_and_zero_importance_are_no_preference(self, case: Shape) -> None:
        if not self.quantizer.takes_importance:
            return
        for value in (1e-12, 3.0, 1e12, 0.0):
            qt = self._packed(_normal(case), torch.full(case[-1:], value))
            where = f"{self.quantizer.name} {list(case)}, every importance {value:g}"
            assert qt.dequantize().isfinite().all(), f"{where}: makes what is not finite"
            if value or self.zero_is_no_preference:
                self._assert_close(qt, where)

    def test_columns_of_no_importance_stay_finite(self, case: Shape) -> None:
        if not self.quantizer.takes_importance:
            return
        importance = _importance(case)
        importance[: case[-1] // 2] = 0
        importance[::3] = 0
        weight = _normal(case)
        weight[..., 0] = 1e4
        made = self._packed(weight, importance).dequantize()
        where = f"{self.quantizer.name} {list(case)}"
        assert made.isfinite().all(), f"{where}: makes what is not finite where importance is 0"

    def test_rows_are_weighed_alone(self, case: Shape) -> None:
        q, block = self.quantizer, self.quantizer.row_block
        if not q.takes_importance or block is None or len(case) != 2:
            return
        weight, importance = _normal(case), _importance(case)
        whole = self._packed(weight, importance)
        start = (case[0] - 1) // block * block
        part = self._packed(weight[start:].clone(), importance)
        where = f"{q.name} {list(case)}: the last rows alone, with importance,"
        _assert_same(part, whole.narrow(0, start, case[0] - start), where)

    def test_refuses_what_is_no_importance(self, case: Shape) -> None:
        if not self.quantizer.takes_importance:
            return
        where = f"{self.quantizer.name} {list(case)}"
        for bad in (float("nan"), float("inf"), -1.0):
            importance = _importance(case)
            importance[3] = bad
            message = self._refusal(case, importance, ValueDomainError, f"{where} with importance {bad}")
            named = "3" in re.findall(r"\d+", message)
            assert named, f"{where} with importance {bad}: {message} does not name column 3"
        self._refusal(case, torch.ones(case[-1] + 1), ShapeError, f"{where} with one column too many")

    def test_refusals_are_sentences(self) -> None:
        shapes: Sequence[Shape] = ((), (7,), (4, 1), (4, 31), (4, 33), (0, 32), (32, 0), *self.shapes)
        for shape in shapes:
            for dtype in ("f32", "i8"):
                reason = self.quantizer.why_not(shape, dtype)
                if reason is not None:
                    assert_sentence(reason, f"{self.quantizer.name} {shape} {dtype}")
                    self._assert_refuses(shape, dtype)

    def test_the_types_it_names_exist(self) -> None:
        known = {*registry().quantizers, canonical_name(self.quantizer.name)}
        for name in (*self.quantizer.fallback, self.quantizer.sensitive):
            fine = name is None or canonical_name(name) in known
            assert fine, f"{self.quantizer.name} falls back on {name!r}, which no installed plugin gives"

    def test_its_module_imports_no_torch(self) -> None:
        assert_pure_import(type(self.quantizer).__module__)

    def _packed(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
        shape = tuple(weight.shape)
        stats = self.stats(shape, 2) if importance is None else importance
        return self.quantizer.quantize(weight, self.quantizer.layout_for(shape, "f32"), stats)

    def _assert_close(self, qt: QuantizedTensor, where: str) -> None:
        weight = _normal(qt.shape)
        off = (qt.dequantize() - weight).square().mean().sqrt() / weight.square().mean().sqrt()
        declared = 1.5 * (self.quantizer.expected_error or 0)  # few weights: one group may be worse than most
        wide = max(2 ** (2 - qt.bits_per_weight), declared, 0.05)
        allowed = self.max_error if self.max_error is not None else wide
        assert off <= allowed, f"{where}: relative error {off:.3g}, allowed {allowed:.3g}"

    def _refusal(self, case: Shape, importance: Tensor, kind: type[QuantryError], where: str) -> str:
        try:
            self._packed(_normal(case), importance)
        except kind as e:
            return str(e)
        except QuantryError as e:
            raise AssertionError(f"{where}: raises {type(e).__name__}, not {kind.__name__}: {e}") from e
        raise AssertionError(f"{where}: accepted")

    def _assert_refuses(self, shape: Shape, dtype: str) -> None:
        if dtype != "f32" or len(shape) < 2:
            return
        try:
            layout: Layout = self.quantizer.layout_for(shape, dtype)
            self.quantizer.quantize(torch.zeros(shape), layout, None)
        except ShapeError:
            return
        except QuantryError as e:
            what = f"raises {type(e).__name__}, not ShapeError: {e}"
            raise AssertionError(f"{self.quantizer.name} {shape}: {what}") from e
        raise AssertionError(f"{self.quantizer.name} {shape}: why_not refuses, quantize does not")


def _normal(shape: Shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05


def _importance(shape: Shape) -> Tensor:
    """Per column, over four decades as mean squared activations are."""
    return torch.randn(shape[-1], generator=torch.Generator().manual_seed(3)).mul(2).exp()


def _assert_same(one: QuantizedTensor, two: QuantizedTensor, where: str) -> None:
    for name, buffer in one.buffers.items():
        assert torch.equal(buffer, two.buffers[name]), f"{where} gives other bytes in {name!r}"

"""The conformance suite fails for layouts that break one promise each, at the test that names the promise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from quantry.errors import UsageError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.testing.layouts import LayoutSuite


@dataclass(frozen=True, slots=True)
class Rows(Layout):
    """A sound layout: one int8 per weight, one float32 scale per row."""

    family: ClassVar[str] = "rows"

    def why_not(self, shape: Shape) -> str | None:
        return "it holds matrices" if len(shape) < 2 else None

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        return {"codes": BufferSpec("i8", shape), "scales": BufferSpec("f32", (*shape[:-1], 1))}

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return buffers["codes"].float() * buffers["scales"]

    def step(self, dim: int) -> int | None:
        return 1 if dim == -2 else 4

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        parts = {"codes": buffers["codes"].narrow(dim, start, length), "scales": buffers["scales"]}
        if dim == -2:
            parts["scales"] = buffers["scales"].narrow(dim, start, length)
        return parts


class ForgetsScales(Rows):
    __slots__ = ()

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        parts = Rows.narrow(self, buffers, shape, dim, start, length)
        return {**parts, "scales": buffers["scales"][..., :length, :]} if dim == -2 else parts


class SlicesAgainstItsStep(Rows):
    __slots__ = ()

    def step(self, dim: int) -> int | None:
        return 1 if dim == -2 else None


class GivesFloat64(Rows):
    __slots__ = ()

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return Rows.dequantize(self, buffers, shape).double()


class WritesToItsBuffers(Rows):
    __slots__ = ()

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        dense = Rows.dequantize(self, buffers, shape)
        buffers["scales"].mul_(-1)
        return dense * dense.sign()


class IgnoresExperts(Rows):
    __slots__ = ()

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        dense = Rows.dequantize(self, buffers, shape)
        return dense if len(shape) == 2 else dense[:1].expand(shape).clone()


class RefusesInOneWord(Rows):
    __slots__ = ()

    def why_not(self, shape: Shape) -> str | None:
        return "no" if len(shape) < 2 else None


class StoresFloat8(Rows):
    __slots__ = ()

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        return {**Rows.buffers(self, shape), "extra": BufferSpec("f8_e4m3", shape)}


class IgnoresItsCodes(Rows):
    __slots__ = ()

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return torch.ones(shape)


class HasNoTextOfItsOwn(Rows):
    __slots__ = ()

    def __str__(self) -> str:
        return "rows: "


class TestRows(LayoutSuite):
    layout_cases = ((Rows(), (6, 12)), (Rows(), (2, 6, 12)))


BROKEN = {
    ForgetsScales: "test_slices_equal_slices_of_the_dense_weight",
    SlicesAgainstItsStep: "test_slices_off_the_grid_are_refused",
    GivesFloat64: "test_dequantize_gives_finite_float32",
    WritesToItsBuffers: "test_dequantize_gives_finite_float32",
    IgnoresExperts: "test_leading_dimensions_stack",
    RefusesInOneWord: "test_refusals_are_sentences",
    StoresFloat8: "test_buffers_are_known_without_data",
    IgnoresItsCodes: "test_content_matters",
    HasNoTextOfItsOwn: "test_text_reads_back",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_promise_fails_the_test_of_that_name(broken: type[Rows]) -> None:
    with pytest.raises((AssertionError, UsageError), match="rows"):
        getattr(LayoutSuite(), BROKEN[broken])((broken(), (6, 12)))


def test_every_test_takes_nothing_but_the_case() -> None:
    tests = [f for name, f in inspect.getmembers(LayoutSuite, inspect.isfunction) if name.startswith("test_")]
    assert len(tests) >= 10
    assert all(list(inspect.signature(f).parameters) == ["self", "case"] for f in tests)

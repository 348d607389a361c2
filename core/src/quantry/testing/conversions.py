"""Conformance of a conversion: other bytes, the same numbers to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from quantry.convert import Conversion
from quantry.layout import Layout, Shape
from quantry.layouts import Dense
from quantry.plugins import registry
from quantry.tensor import QuantizedTensor
from quantry.testing.suite import Suite, assert_pure_import
from quantry.testing.weights import known_layouts, random_weight

__all__ = ["ConversionSuite"]

_SHAPES: Sequence[Shape] = ((32, 256), (16, 1024), (17, 512), (33, 2048), (5, 96), (1, 72), (3, 16, 256))


class ConversionSuite(Suite):
    """Subclass it and name a conversion.

    layouts: sources to try; () is every known layout of the source family. Override `weight` where random
    packed values need care.
    """

    conversion: ClassVar[Conversion]
    layouts: ClassVar[Sequence[Layout]] = ()
    shapes: ClassVar[Sequence[Shape]] = _SHAPES
    max_cases: ClassVar[int] = 48

    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        """A packed value to convert."""
        return random_weight(layout, shape, seed)

    def cases(self) -> Sequence[tuple[Layout, Shape]]:
        """Sources that the conversion is defined on, every layout in turn."""
        fits = [
            (layout, shape)
            for shape in self.shapes
            for layout in self._sources
            if self._target(layout, shape)
        ]
        step = max(len(fits) // self.max_cases, 1)
        return fits[::step][: self.max_cases]

    def test_it_is_defined_somewhere(self) -> None:
        known = [str(layout) for layout in self._sources]
        assert self.cases(), f"{self._name} converts none of {known[:8]} …; name its `layouts`"

    def test_changes_no_number(self, case: tuple[Layout, Shape]) -> None:
        qt, converted = self._converted(case)
        before, after = qt.dequantize(), converted.dequantize()
        differ = (before.view(torch.int32) != after.view(torch.int32)) & (
            before != after
        )  # 0 and -0 are one number
        assert not differ.any(), (
            f"{self._where(case)}: {int(differ.sum())} of {differ.numel()} numbers differ"
        )

    def test_gives_what_it_announces(self, case: tuple[Layout, Shape]) -> None:
        qt, converted = self._converted(case)
        target = self._target(*case)
        where = self._where(case)
        assert converted.layout == target, f"{where}: announces {target}, gives {converted.layout}"
        assert converted.layout.family == self.conversion.target, (
            f"{where}: is not of family {self.conversion.target}"
        )
        assert converted.shape == qt.shape, f"{where}: shape {list(converted.shape)}"

    def test_leaves_its_source_alone(self, case: tuple[Layout, Shape]) -> None:
        qt = self.weight(*case, seed=1)
        before = {name: buffer.clone() for name, buffer in qt.buffers.items()}
        target = self._target(*case)
        assert target is not None
        self.conversion.convert(qt, target)
        for name, buffer in qt.buffers.items():
            assert torch.equal(buffer, before[name]), f"{self._where(case)}: wrote to {name!r}"

    def test_a_private_packing_has_a_way_back(self, case: tuple[Layout, Shape]) -> None:
        _, converted = self._converted(case)
        if converted.layout.storable:
            return
        back = [
            edge.convert(converted, case[0])
            for edge in registry().conversions
            if edge.source == converted.layout.family
            and edge.target_for(converted.layout, case[1]) == case[0]
        ]
        assert back, (
            f"{self._where(case)}: no installed conversion leads back to {case[0]}, so it cannot be saved"
        )
        source = self.weight(*case, seed=1)
        same = all(torch.equal(back[0].buffers[name], buffer) for name, buffer in source.buffers.items())
        assert same, f"{self._where(case)}: the way back gives other bytes"

    def test_declines_without_raising(self) -> None:
        shapes: Sequence[Shape] = ((), (7,), (0, 0), (0, 32), (1, 1), (2, 3, 4, 32))
        for layout in [*self._sources[:64], Dense("i64")]:
            for shape in shapes:
                target = self.conversion.target_for(layout, shape) if layout.why_not(shape) is None else None
                good = target is None or isinstance(target, Layout)
                assert good, f"{self._name}: target_for({layout}, {shape}) gives {target!r}"

    def test_its_module_imports_no_torch(self) -> None:
        assert_pure_import(type(self.conversion).__module__)

    @property
    def _sources(self) -> list[Layout]:
        return list(self.layouts or known_layouts(self.conversion.source))

    @property
    def _name(self) -> str:
        return type(self.conversion).__qualname__

    def _target(self, layout: Layout, shape: Shape) -> Layout | None:
        return self.conversion.target_for(layout, shape) if layout.why_not(shape) is None else None

    def _converted(self, case: tuple[Layout, Shape]) -> tuple[QuantizedTensor, QuantizedTensor]:
        qt, target = self.weight(*case, seed=1), self._target(*case)
        assert target is not None  # cases() kept only these
        return qt, self.conversion.convert(qt, target)

    def _where(self, case: tuple[Layout, Shape]) -> str:
        return f"{self._name}: {case[0]} {list(case[1])}"

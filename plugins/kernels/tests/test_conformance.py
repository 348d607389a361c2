"""The conformance kit on every kernel and conversion of the panels."""

from __future__ import annotations

from typing import ClassVar

import torch
from drawn import by_torch, clean, panels, rounded_numbers
from grouped_library import BUILD, BY_NAME, CONVERSIONS, UNPACKING
from torch import Tensor

from quantry import GroupedAffine, GroupedCodebook, Layout, Problem, QuantizedTensor, ScaledFloat, Shape
from quantry.layouts.panel import PanelLayout
from quantry.testing import ConversionSuite, KernelSuite, NativeBuildSuite, random_weight

AFFINE = (
    *(GroupedAffine(bits, 32, "in", "int", "f16") for bits in GroupedAffine.BITS),
    *(GroupedAffine(4, 64, "in", zero, "bf16") for zero in GroupedAffine.ZEROS),
    GroupedAffine(4, 128, "in", "int", "f16", perm=True),
    GroupedAffine(3, 16, "in", "bias", "f32"),
    GroupedAffine(8, 0, "in", "none", "f32"),
)
ACROSS = tuple(GroupedAffine(bits, 16, "out", "float", "f16") for bits in (2, 4, 8))
CODEBOOKS = (
    *(GroupedCodebook(table, 32, scale) for table in GroupedCodebook.TABLES for scale in ("f32", "f16")),
    GroupedCodebook("nf4", 32, "nested"),
    GroupedCodebook("nf4", 64, "nested", flat=True),
    GroupedCodebook("fp4", 16, "f32", flat=True),
)
FLOATS = (
    ScaledFloat("e4m3", (0, 0), "f32"),
    ScaledFloat("e4m3", (128, 128), "f32"),
    ScaledFloat("e5m2", (1, 0), "bf16"),
    ScaledFloat("e4m3", (1, 32), "e8m0"),
    ScaledFloat("e2m1", (1, 32), "e8m0"),
    ScaledFloat("e2m1", (1, 16), "e4m3", outer=True),
)


class PanelKernelSuite(KernelSuite):
    sources: ClassVar[tuple[Layout, ...]]
    max_cases = 12  # test_grouped_kernels.py goes through all layouts

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "sources"):
            cls.layouts = [panels(layout) for layout in cls.sources]

    def tolerance(self, case: Problem, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        plain = super().tolerance(case, given, dense)
        if self.kernel.numerics_for(case.layout).activations == "exact":
            return plain
        off = rounded_numbers(case.layout, self.weight(case.layout, case.shape, 1), dense)
        return plain + self._call.expected((given[0].abs(), *given[1:]), off)


class TestAffineInt8(PanelKernelSuite):
    kernel, sources = BY_NAME["test.affine_int8"], AFFINE
    max_cases = 24


class TestAffineExact(PanelKernelSuite):
    kernel, sources = BY_NAME["test.affine_exact"], (*AFFINE, *ACROSS)
    max_cases = 24


class TestAffineExpertsInt8(PanelKernelSuite):
    kernel, sources = BY_NAME["test.affine_experts_int8"], AFFINE
    max_cases = 24


class TestAffineExpertsExact(PanelKernelSuite):
    kernel, sources = BY_NAME["test.affine_experts_exact"], (*AFFINE, *ACROSS)
    max_cases = 24


class TestAffineDx(PanelKernelSuite):
    kernel, sources = BY_NAME["test.affine_dx"], (*AFFINE, *ACROSS)


class TestAffineEmbedding(PanelKernelSuite):
    kernel, sources = BY_NAME["test.affine_embedding"], (*AFFINE, *ACROSS)


class TestCodebookInt8(PanelKernelSuite):
    kernel, sources = BY_NAME["test.codebook_int8"], CODEBOOKS


class TestCodebookExact(PanelKernelSuite):
    kernel, sources = BY_NAME["test.codebook_exact"], CODEBOOKS


class TestCodebookExpertsInt8(PanelKernelSuite):
    kernel, sources = BY_NAME["test.codebook_experts_int8"], CODEBOOKS
    max_cases = 24


class TestCodebookExpertsExact(PanelKernelSuite):
    kernel, sources = BY_NAME["test.codebook_experts_exact"], CODEBOOKS
    max_cases = 24


class TestCodebookDx(PanelKernelSuite):
    kernel, sources = BY_NAME["test.codebook_dx"], CODEBOOKS


class TestCodebookEmbedding(PanelKernelSuite):
    kernel, sources = BY_NAME["test.codebook_embedding"], CODEBOOKS


class TestFloatInt8(PanelKernelSuite):
    kernel, sources = BY_NAME["test.float_int8"], FLOATS


class TestFloatExact(PanelKernelSuite):
    kernel, sources = BY_NAME["test.float_exact"], FLOATS


class TestFloatExpertsInt8(PanelKernelSuite):
    kernel, sources = BY_NAME["test.float_experts_int8"], FLOATS


class TestFloatExpertsExact(PanelKernelSuite):
    kernel, sources = BY_NAME["test.float_experts_exact"], FLOATS
    max_cases = 24


class TestFloatDx(PanelKernelSuite):
    kernel, sources = BY_NAME["test.float_dx"], FLOATS


class TestFloatEmbedding(PanelKernelSuite):
    kernel, sources = BY_NAME["test.float_embedding"], FLOATS


class PackSuite(ConversionSuite):
    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        return clean(random_weight(layout, shape, seed))

    def test_native_code_packs_as_defined(self, case: tuple[Layout, Shape]) -> None:
        qt = self.weight(*case, seed=1)
        target = self.conversion.target_for(*case)
        assert target is not None
        made = self.conversion.convert(qt, target)
        for name, buffer in by_torch(qt).buffers.items():
            assert torch.equal(made.buffers[name], buffer), f"{target} {list(case[1])}: {name}"


class UnpackSuite(ConversionSuite):
    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        assert isinstance(layout, PanelLayout)
        return by_torch(clean(random_weight(layout.source, shape, seed)))


class TestPackAffine(PackSuite):
    conversion, layouts = CONVERSIONS[0], (*AFFINE, *ACROSS)


class TestUnpackAffine(UnpackSuite):
    conversion, layouts = UNPACKING[0], [panels(layout) for layout in (*AFFINE, *ACROSS)]


class TestPackCodebook(PackSuite):
    conversion, layouts = CONVERSIONS[1], CODEBOOKS


class TestUnpackCodebook(UnpackSuite):
    conversion, layouts = UNPACKING[1], [panels(layout) for layout in CODEBOOKS]


class TestPackFloat(PackSuite):
    conversion, layouts = CONVERSIONS[2], FLOATS


class TestUnpackFloat(UnpackSuite):
    conversion, layouts = UNPACKING[2], [panels(layout) for layout in FLOATS]


class TestBuild(NativeBuildSuite):
    def objects(self, target: str) -> list:
        return sorted(BUILD.glob(f"CMakeFiles/quantry_test_cpu_{target}.dir/**/*.o"))

    def shared_library(self):
        return BUILD / "quantry_test_cpu.so"

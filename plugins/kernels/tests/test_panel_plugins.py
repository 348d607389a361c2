"""The panels through the resolver, several plugins that share them, and what kernels decline."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from drawn import activations, drawn, multiply
from grouped_library import BY_NAME, CONVERSIONS, LIBRARY

import quantry
from quantry import (
    Conversion,
    GroupedAffine,
    GroupedCodebook,
    Kernel,
    KernelError,
    Layout,
    NativeLibrary,
    Problem,
    QuantizedTensor,
    ScaledFloat,
    Shape,
    ShapeError,
    hookimpl,
    panel_conversions,
    panel_kernels,
    registry,
)
from quantry.testing import installed, random_weight


def reason(name: str, layout: Layout, shape: Shape, dtype: str = "f32", rows: int = 1) -> str | None:
    from drawn import panels

    kernel = BY_NAME[name]
    return kernel.why_not(
        Problem(kernel.op, panels(layout), shape, rows, dtype, registry().device("cpu"), "fast")
    )


def test_what_is_declined_says_why() -> None:
    odd = GroupedAffine(4, 20, "in", "int", "f16")
    assert reason("test.affine_exact", odd, (16, 80)) == "groups of 20 columns are no multiple of 16"
    assert reason("test.affine_exact", odd, (16, 20)) is None
    across = GroupedAffine(4, 16, "out", "int", "f16")
    assert reason("test.affine_int8", across, (16, 80)) == (
        'scales across rows (axis "out") take exact activations only'
    )
    assert reason("test.affine_exact", across, (16, 80)) is None
    fp4 = GroupedCodebook("fp4", 64, "f32")
    assert reason("test.codebook_int8", fp4, (16, 64)) == (
        "the numbers of fp4 are not close to 8-bit integers"
    )
    assert reason("test.float_int8", ScaledFloat("e4m3", (0, 0), "f32"), (16, 64)) == (
        "e4m3 numbers are no integers: activations stay as given"
    )
    four = GroupedAffine(4, 32, "in", "int", "f16")
    assert reason("test.affine_exact", four, (16, 64), "f64") == (
        "activations and results are f32, f16 or bf16, not f64"
    )
    assert reason("test.affine_exact", four, (2, 16, 64)) == "one matrix at a time, not a stack of them"
    assert reason("test.affine_experts_exact", four, (16, 64)) == ("a stack of matrices [experts, N, K] only")


@pytest.mark.parametrize(
    ("layout", "block"),
    [
        (GroupedAffine(4, 16, "in", "int", "f16"), 32),
        (GroupedAffine(4, 64, "in", "int", "f16"), 64),
        (GroupedAffine(4, 96, "in", "int", "f16"), 32),
        (GroupedAffine(4, 1024, "in", "int", "f16"), 128),
        (GroupedAffine(8, 0, "in", "none", "f32"), 128),
        (GroupedCodebook("nf4", 64, "f32"), 64),
        (ScaledFloat("e2m1", (1, 16), "e4m3"), 32),
    ],
    ids=str,
)
def test_the_stated_rounding_is_that_of_native_code(layout: Layout, block: int) -> None:
    from ctypes import addressof, c_int64, c_void_p

    from quantry.panels.abi import describe, panel_layout

    w, _ = drawn(layout, (16, 96 * 64))
    kernel = BY_NAME[f"test.{layout.family}_int8"]
    assert kernel.numerics_for(w.layout).activations == f"int8/{block}"
    described = describe(LIBRARY.target(), False, panel_layout(w.layout), w.shape, w.buffers)
    ask = LIBRARY.library().quantry_test_grouped_block
    ask.argtypes, ask.restype = [c_void_p], c_int64
    assert ask(addressof(described)) == block


class Partial(NativeLibrary):
    """A library that was compiled without the code family that it is asked about."""

    def function(self, name: str) -> Callable[..., int]:
        return (lambda _: 2) if name == "grouped_check" else super().function(name)


def test_what_a_library_was_compiled_without_is_declined() -> None:
    library = Partial("quantry_test", "quantry_test_cpu", "quantry_test", "quantry-partial")
    w, _ = drawn(GroupedAffine(5, 32, "in", "int", "f16"), (16, 64))
    for kernel in panel_kernels(library, "partial", ("affine",)):
        shape = (2, 16, 64) if kernel.op == "experts" else (16, 64)
        problem = Problem(kernel.op, w.layout, shape, 1, "f32", registry().device("cpu"), "fast")
        assert kernel.why_not(problem) == (
            "quantry-partial was compiled without kernels for affine_panel:b5,g32,in,int,f16"
        )


class Other:
    """Another plugin that gives the same ways and its own kernels, for one family."""

    library = NativeLibrary("quantry_test", "quantry_test_cpu", "quantry_test", "quantry-other")

    @hookimpl
    def quantry_kernels(self) -> Iterable[Kernel]:
        return panel_kernels(self.library, "other", ("affine",))

    @hookimpl
    def quantry_conversions(self) -> Iterable[Conversion]:
        return panel_conversions(self.library, ("affine",))


def test_two_plugins_share_the_panels() -> None:
    source = random_weight(GroupedAffine(4, 64, "in", "int", "f16"), (48, 192), 1)
    with installed(Other(), name="other") as found:
        assert not found.failures
        packed = source.convert("affine_panel:b4,g64,in,int,f16")
        assert packed.convert(source.layout).buffers["codes"].equal(source.buffers["codes"])
        x = activations((3, 192))
        for prefix in ("test", "other"):
            with quantry.use(f"{prefix}.affine_exact"):
                y = quantry.matmul(x, source)
            assert torch.equal(y, multiply(BY_NAME["test.affine_exact"], x, packed))


def test_the_resolver_packs_a_plain_weight() -> None:
    for layout in (
        GroupedAffine(4, 64, "in", "int", "f16"),
        GroupedCodebook("nf4", 64, "nested"),
        ScaledFloat("e4m3", (128, 128), "f32"),
    ):
        module = quantry.QuantLinear(random_weight(layout, (256, 512), 1))
        module.prepare(numerics="fast")
        assert module.layout.family == f"{layout.family}_panel", str(module.layout)
        assert module.storable().layout == layout
        x = activations((2, 512))
        want = x.double() @ module.storable().dequantize().double().T
        assert (module(x).double() - want).abs().max() <= 0.02 * want.abs().max()


def test_a_large_matrix_is_packed_in_runs_of_rows() -> None:
    from quantry.convert import convert

    source = random_weight(GroupedAffine(8, 64, "in", "int", "f16"), (2000, 8192), 1)
    released = []
    packed = convert(source, "affine_panel:b8,g64,in,int,f16", release=released.append)
    assert len(released) > len(source.buffers)
    edge = next(e for e in CONVERSIONS if e.source == "affine")
    whole = edge.convert(source, packed.layout)
    assert all(torch.equal(packed.buffers[n], b) for n, b in whole.buffers.items())


def test_perm_is_checked_before_native_code_follows_it() -> None:
    w, _ = drawn(GroupedAffine(4, 32, "in", "int", "f16", perm=True), (16, 64))
    for wrong, said in ((64, "perm holds 64"), (-1, "perm holds -1")):
        perm = w.buffers["perm"].clone()
        perm[5] = wrong
        bad = QuantizedTensor(w.layout, w.shape, {**w.buffers, "perm": perm})
        with pytest.raises(ShapeError, match=said):
            multiply(BY_NAME["test.affine_exact"], activations((1, 64)), bad)


@pytest.mark.parametrize("wrong", [-1, 16, 1 << 62])
def test_ids_out_of_range_are_refused(wrong: int) -> None:
    w, _ = drawn(GroupedAffine(4, 32, "in", "int", "f16"), (16, 64))
    with pytest.raises(KernelError, match="a row index is out of range"):
        BY_NAME["test.affine_embedding"].embedding(
            torch.tensor([0, wrong]), list(w.buffers.values()), w.layout, w.shape, torch.float32
        )

"""Conformance of a layout: what every other part of Quantry takes for granted about one."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from quantry.dtypes import torch_dtype
from quantry.errors import ShapeError
from quantry.layout import BufferSpec, Layout, Shape, parse_layout
from quantry.tensor import QuantizedTensor
from quantry.testing.suite import Suite, assert_sentence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LayoutCase", "LayoutSuite"]

LayoutCase = tuple[Layout, Shape]

# plain pickle and `torch.load(weights_only=True)` fail on tensors of the others
_STORABLE = ("u8", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64")


class LayoutSuite(Suite):
    """Subclass it, list cases, and pytest runs every test on every case.

    ```python
    class TestMyLayout(LayoutSuite):
        layout_cases = ((MyLayout(4), (6, 64)), (MyLayout(3), (2, 5, 32)))
    ```
    Choose shapes that hold several groups in both directions and, where the layout allows, a short last one.
    Override `random_buffers` where random bytes are not valid codes, and `refuses_slice` where the layout
    refuses a slice that `step` allows. Failures are AssertionErrors that name the case: no pytest is needed.
    """

    layout_cases: ClassVar[Sequence[LayoutCase]] = ()

    def cases(self) -> Sequence[LayoutCase]:
        """`layout_cases`; a subclass may compute them instead."""
        return self.layout_cases

    def case_id(self, case: LayoutCase) -> str:
        """`affine:b4,g32,in,int,f16-6x96`."""
        layout, shape = case
        return f"{layout}-{'x'.join(map(str, shape))}"

    def random_buffers(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Valid buffers: random bytes and integers, floats of both signs near 0.1, `perm` a permutation."""
        generator = torch.Generator().manual_seed(seed)
        return {name: _random(name, spec, generator) for name, spec in layout.buffers(shape).items()}

    def refuses_slice(self, layout: Layout, shape: Shape, dim: int, start: int, length: int) -> bool:
        """Whether `layout` refuses this slice of `shape` although it lies on the grid of `step`."""
        return False

    def tensor(self, case: LayoutCase, seed: int = 0) -> QuantizedTensor:
        """Random valid content for a case."""
        layout, shape = case
        return QuantizedTensor(layout, shape, self.random_buffers(layout, shape, seed))

    def test_text_reads_back(self, case: LayoutCase) -> None:
        """`parse_layout(str(layout))` is the layout, and its text has one spelling."""
        layout, _ = case
        text = str(layout)
        again = parse_layout(text, {type(layout).family: type(layout)})
        assert again == layout, f"{text!r} reads back as {again!r}"
        assert str(again) == text, f"{text!r} is written as {str(again)!r} the second time"
        assert text.startswith(f"{layout.family}:"), (
            f"{text!r} does not start with its family {layout.family!r}"
        )
        assert not any(c.isspace() for c in text), f"{text!r} holds white space"

    def test_it_is_a_value(self, case: LayoutCase) -> None:
        """Copies are equal and hash alike; the class is slotted."""
        layout, _ = case
        for same in (copy.deepcopy(layout), _pickled(layout)):
            assert same == layout, f"{layout}: a copy is not equal"
            assert hash(same) == hash(layout), f"{layout}: a copy has another hash"
        assert not hasattr(layout, "__dict__"), f"{layout}: use @dataclass(frozen=True, slots=True)"

    def test_refusals_are_sentences(self, case: LayoutCase) -> None:
        """`why_not` accepts the case; elsewhere it gives a sentence, and `QuantizedTensor` refuses too."""
        layout, shape = case
        assert layout.why_not(shape) is None, f"{layout} refuses its own case: {layout.why_not(shape)}"
        for other in _neighbours(shape):
            reason = layout.why_not(other)
            if reason is None:
                layout.buffers(other)
                continue
            assert_sentence(reason, f"{layout} {list(other)}")
            assert _shape_error(QuantizedTensor, layout, other, {}), (
                f"{layout} {list(other)}: refused, yet constructed"
            )

    def test_buffers_are_known_without_data(self, case: LayoutCase) -> None:
        """Names, element types and sizes follow from the shape, and can be stored."""
        layout, shape = case
        specs = layout.buffers(shape)
        assert list(specs) == list(layout.buffers(shape)), f"{layout}: the order of the buffers changes"
        for name, spec in specs.items():
            assert name.isidentifier(), f"{layout}: {name!r} cannot name a module buffer"
            assert spec.dtype in _STORABLE, f"{layout}: buffer {name!r} is {spec.dtype}; store bytes as u8"
        qt = self.tensor(case)
        real = sum(b.numel() * b.element_size() for b in qt.buffers.values())
        assert layout.nbytes(shape) == qt.nbytes == real, (
            f"{layout}: {layout.nbytes(shape)} bytes, really {real}"
        )

    def test_wrong_buffers_are_refused(self, case: LayoutCase) -> None:
        """A missing, surplus, misshapen or mistyped buffer is a ShapeError."""
        layout, shape = case
        good = dict(self.tensor(case).buffers)
        for name, buffer in good.items():
            wrong = {
                "one missing": {n: b for n, b in good.items() if n != name},
                "one too long": {**good, name: buffer.new_zeros((*buffer.shape, 2))},
                "another type": {**good, name: buffer.to(torch.bool)},
                "a surplus one": {**good, name + "_": buffer},
            }
            for what, buffers in wrong.items():
                with_error = _shape_error(QuantizedTensor, layout, shape, buffers)
                assert with_error, f"{layout}: {what} ({name}) is accepted"

    def test_dequantize_gives_finite_float32(self, case: LayoutCase) -> None:
        """`dequantize` gives float32 in the logical shape, always the same, and writes to no buffer."""
        layout, shape = case
        qt = self.tensor(case)
        before = {n: b.clone() for n, b in qt.buffers.items()}
        dense = qt.dequantize()
        for name, buffer in qt.buffers.items():
            assert torch.equal(buffer, before[name]), f"{layout}: dequantize wrote to buffer {name!r}"
        assert dense.dtype == torch.float32, f"{layout}: dequantize gives {dense.dtype}"
        assert dense.shape == shape, f"{layout}: dequantize gives {list(dense.shape)} for {list(shape)}"
        assert dense.isfinite().all(), f"{layout}: NaN or Inf from valid buffers; override random_buffers?"
        assert torch.equal(dense, qt.dequantize()), f"{layout}: the second dequantize gives other numbers"

    def test_content_matters(self, case: LayoutCase) -> None:
        """Different buffers are different numbers."""
        layout, shape = case
        if math.prod(shape) > 1:
            one, two = self.tensor(case, 1).dequantize(), self.tensor(case, 2).dequantize()
            assert not torch.equal(one, two), f"{layout}: different buffers give the same numbers"

    def test_slices_equal_slices_of_the_dense_weight(self, case: LayoutCase) -> None:
        """Slices on the grid of `step` dequantize to slices of the whole, bit for bit."""
        layout, shape = case
        qt = self.tensor(case)
        dense = qt.dequantize()
        for dim in range(-min(2, len(shape)), 0):
            for start, length in _slices(layout.step(dim), shape[dim]):
                where = f"{layout} {list(shape)} dim {dim}, {start}:{start + length}"
                if self.refuses_slice(layout, shape, dim, start, length):
                    assert _shape_error(qt.narrow, dim, start, length), f"{where}: should be refused"
                    continue
                part = qt.narrow(dim, start, length)
                expected = dense.narrow(dim, start, length)
                assert torch.equal(part.dequantize(), expected), f"{where}: other numbers"

    def test_slices_off_the_grid_are_refused(self, case: LayoutCase) -> None:
        """A slice off the grid, or where `step` is None, is a ShapeError."""
        layout, shape = case
        qt = self.tensor(case)
        for dim in range(-min(2, len(shape)), 0):
            step, size = layout.step(dim), shape[dim]
            off = [(0, size)] if step is None else [(1, size - 1), (0, 1)] if 1 < step < size else []
            for start, length in off:
                where = f"{layout} dim {dim}, {start}:{start + length}, step {step}"
                assert _shape_error(qt.narrow, dim, start, length), f"{where}: not refused"
            if step is None:
                refused = _shape_error(layout.narrow, qt.buffers, shape, dim, 0, size)
                assert refused, f"{layout}: step({dim}) is None, layout.narrow slices all the same"

    def test_leading_dimensions_stack(self, case: LayoutCase) -> None:
        """Buffers of experts are stacks of the buffers of one, and an expert can be taken out."""
        layout, shape = case
        stacked = (2, *shape)
        if layout.why_not(stacked) is not None:
            return
        parts = [self.tensor(case, seed) for seed in (1, 2)]
        buffers = {n: torch.stack([p.buffers[n] for p in parts]) for n in layout.buffers(shape)}
        both = QuantizedTensor(layout, stacked, buffers)
        expected = torch.stack([p.dequantize() for p in parts])
        assert torch.equal(both.dequantize(), expected), f"{layout}: a stack is not a stack of its parts"
        if len(shape) >= 2:
            second = both.narrow(-len(stacked), 1, 1).dequantize()
            assert torch.equal(second, expected[1:]), f"{layout}: the second of two experts has other numbers"

    def test_tensor_survives_pickle_and_deepcopy(self, case: LayoutCase) -> None:
        """Copies of a packed weight hold the same numbers in memory of their own."""
        layout, _ = case
        qt = self.tensor(case)
        for name, copied in (("pickle", _pickled(qt)), ("deepcopy", copy.deepcopy(qt))):
            assert (copied.layout, copied.shape) == (qt.layout, qt.shape), (
                f"{layout}: {name} changes the layout"
            )
            assert torch.equal(copied.dequantize(), qt.dequantize()), f"{layout}: {name} changes the numbers"
            shared = any(
                copied.buffers[n].data_ptr() == b.data_ptr() for n, b in qt.buffers.items() if b.numel()
            )
            assert not shared, f"{layout}: {name} shares memory with the original"


def _random(name: str, spec: BufferSpec, generator: torch.Generator) -> Tensor:
    if name == "perm":
        order = torch.rand(spec.shape, generator=generator).argsort(dim=-1)
        return order.to(torch_dtype(spec.dtype))
    if spec.dtype in ("f16", "bf16", "f32", "f64"):
        spread = torch.rand(spec.shape, generator=generator) * 0.1 + 0.05
        sign = torch.randint(0, 2, spec.shape, generator=generator) * 2 - 1
        return (spread * sign).to(torch_dtype(spec.dtype))
    low, high = (0, 256) if spec.dtype == "u8" else (-128, 128)
    return torch.randint(low, high, spec.shape, generator=generator).to(torch_dtype(spec.dtype))


def _neighbours(shape: Shape) -> Iterator[Shape]:
    """Shapes that a layout may refuse: fewer dimensions, none, one row or column more, nothing at all."""
    yield from ((), shape[-1:], (3, *shape))
    for i in range(len(shape)):
        yield (*shape[:i], shape[i] + 1, *shape[i + 1 :])
        yield (*shape[:i], 0, *shape[i + 1 :])


def _slices(step: int | None, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) on the grid: all, nothing, the first, second and last step, all but the first."""
    if step is None:
        return
    yield from ((0, size), (0, 0))
    if step < size:
        last = (size - 1) // step * step
        yield from ((0, step), (step, min(step, size - step)), (last, size - last), (step, size - step))


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - bytes made on this line


def _shape_error(call: Any, *args: Any) -> bool:
    """Whether `call(*args)` raises ShapeError with a message; other errors pass through."""
    try:
        call(*args)
    except ShapeError as error:
        return " " in str(error)
    return False

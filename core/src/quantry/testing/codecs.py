"""Conformance of a UQFF codec: what it writes it reads back, and entries that lie are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch

from quantry.codec import UqffCodec
from quantry.dtypes import dtype_name
from quantry.errors import FormatError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts import Dense
from quantry.tensor import QuantizedTensor
from quantry.testing.suite import Suite, assert_pure_import, assert_sentence
from quantry.testing.weights import known_layouts, random_weight

__all__ = ["UqffCodecSuite"]

_SMALL_BYTES = 4096  # entries of at most so many bytes are given to `layout_of` with their data
_SHAPES: Sequence[Shape] = ((16, 256), (5, 96), (3, 72), (2, 4, 256))


class UqffCodecSuite(Suite):
    """Subclass it and name a codec.

    layouts: what to store; () is every known layout of the family. Override `weight` where random values need
    care.
    """

    codec: ClassVar[UqffCodec]
    layouts: ClassVar[Sequence[Layout]] = ()
    shapes: ClassVar[Sequence[Shape]] = _SHAPES

    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        """A packed value to store."""
        return random_weight(layout, shape, seed)

    def cases(self) -> Sequence[tuple[Layout, Shape]]:
        """Weights that the tag can store."""
        return [
            (layout, shape)
            for layout in self._known
            for shape in self.shapes
            if layout.why_not(shape) is None and self.codec.why_not(layout, shape) is None
        ]

    def test_it_stores_something(self) -> None:
        assert self.cases(), (
            f"{self._name} stores none of {[str(x) for x in self._known][:8]}; name its `layouts`"
        )

    def test_announces_its_entries(self, case: tuple[Layout, Shape]) -> None:
        qt = self.weight(*case, seed=1)
        announced, written = self.codec.entries(*case), self.codec.encode(qt)
        found = {name: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for name, t in written.items()}
        assert found == announced, f"{self._where(case)}: announces {announced}, writes {found}"
        assert "" in announced, f"{self._where(case)}: has no entry `<key>.weight`"
        wrong = [name for name in announced if name and not name.startswith(".")]
        assert not wrong, f"{self._where(case)}: suffixes start with a dot, not {wrong}"

    def test_reads_back_what_it_writes(self, case: tuple[Layout, Shape]) -> None:
        qt = self.weight(*case, seed=1)
        written = self.codec.encode(qt)
        layout, shape = self.codec.layout_of(*_headers(written))
        assert (layout, shape) == case, f"{self._where(case)}: reads back as {layout} {list(shape)}"
        back = self.codec.decode(written, layout, shape)
        for name, buffer in qt.buffers.items():
            assert torch.equal(back.buffers[name], buffer), (
                f"{self._where(case)}: {name!r} reads back with other bytes"
            )

    def test_refuses_entries_that_lie(self, case: tuple[Layout, Shape]) -> None:
        written = self.codec.encode(self.weight(*case, seed=1))
        for lie, entries in _lies(written):
            try:
                layout, shape = self.codec.layout_of(*_headers(entries))
                self.codec.decode(entries, layout, shape)
            except FormatError as e:
                assert_sentence(str(e).splitlines()[0], f"{self._where(case)}, {lie}")
            else:
                raise AssertionError(f"{self._where(case)}: accepts {lie}")

    def test_label_is_a_word(self, case: tuple[Layout, Shape]) -> None:
        label = self.codec.label(case[0])
        good = label and label == label.casefold() and not any(c.isspace() or c in "/\\" for c in label)
        assert good, f"{self._where(case)}: label {label!r} cannot name a file"

    def test_refusals_are_sentences(self) -> None:
        for layout in [*self._known[:64], Dense("i64")]:
            for shape in ((), (7,), (0, 32), (2**33, 32), *self.shapes):
                reason = self.codec.why_not(layout, shape)
                if reason is not None:
                    assert_sentence(reason, f"{self._name}: {layout} {shape}")

    def test_its_module_imports_no_torch(self) -> None:
        assert_pure_import(type(self.codec).__module__)

    @property
    def _known(self) -> list[Layout]:
        return list(self.layouts or known_layouts(self.codec.family))

    @property
    def _name(self) -> str:
        return f"{type(self.codec).__qualname__} (tag {self.codec.tag})"

    def _where(self, case: tuple[Layout, Shape]) -> str:
        return f"{self._name}: {case[0]} {list(case[1])}"


def _headers(entries: Mapping[str, torch.Tensor]) -> tuple[dict[str, BufferSpec], dict[str, torch.Tensor]]:
    specs = {name: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for name, t in entries.items()}
    return specs, {name: t for name, t in entries.items() if t.numel() * t.element_size() <= _SMALL_BYTES}


def _lies(entries: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each entry of another type; side entries missing or of another rank; flat data short and long."""
    for name, t in entries.items():
        label = f"`weight{name}`"
        yield f"{label} as i64", {**entries, name: torch.zeros(t.shape, dtype=torch.int64)}
        if name:
            yield f"no {label}", {n: e for n, e in entries.items() if n != name}
            yield f"{label} of rank {t.ndim + 1}", {**entries, name: t.reshape(*t.shape, 1)}
    data = entries[""]
    if len(entries) > 1 and data.ndim == 1 and data.numel():
        yield "data one element short", {**entries, "": data[:-1].clone()}
        yield "data one element long", {**entries, "": torch.cat([data, data[:1]])}

"""UQFF tag 1: a plain weight, the fallback of every other tag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry.codec import UqffCodec
from quantry.errors import HeaderError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.dense import Dense
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UnquantCodec"]

_DTYPES = ("f32", "f16", "bf16", "f64")


class UnquantCodec(UqffCodec):
    """One entry, the weight itself in its own element type and shape."""

    tag = 1
    family = "dense"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """Floats of any shape but a scalar."""
        if not isinstance(layout, Dense) or layout.dtype not in _DTYPES:
            return f"UQFF tag 1 stores {', '.join(_DTYPES)}, not {layout}"
        return None if shape else "a UQFF layer is no scalar"

    def label(self, layout: Layout) -> str:
        """ "unquant", whatever the element type."""
        return "unquant"

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """The weight."""
        return {"": layout.buffers(shape)["weight"]}

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The weight's own memory."""
        return {"": qt.buffers["weight"]}

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """As the entry's header says."""
        dtype, shape = specs[""]
        if dtype not in _DTYPES or not shape:
            raise HeaderError(f"an unquantized layer holds floats, found {dtype} {list(shape)}")
        return Dense(dtype), shape

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """A view of the entry."""
        return QuantizedTensor(layout, shape, {"weight": entries[""]})

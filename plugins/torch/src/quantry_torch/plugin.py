"""What torch's low-bit products need: a packing, the ways there and back, kernels. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from quantry import Conversion, Kernel, Layout, hookimpl


@hookimpl
def quantry_layouts() -> Iterable[type[Layout]]:
    from quantry_torch.int4pack import TorchInt4Pack

    return [TorchInt4Pack]


@hookimpl
def quantry_conversions() -> Iterable[Conversion]:
    from quantry_torch.int4pack import CONVERSIONS

    return CONVERSIONS


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    from quantry_torch import int4pack, int8

    return [*int4pack.KERNELS, *int8.KERNELS]

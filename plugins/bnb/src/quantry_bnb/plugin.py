"""What the bitsandbytes plugin gives. Nothing heavy happens at import."""

from __future__ import annotations

from collections.abc import Iterable

from quantry import Conversion, Kernel, Quantizer, hookimpl


@hookimpl
def quantry_quantizers() -> Iterable[Quantizer]:
    from quantry_bnb.encode import QUANTIZERS

    return QUANTIZERS


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    from quantry_bnb.panels import KERNELS

    return KERNELS


@hookimpl
def quantry_conversions() -> Iterable[Conversion]:
    from quantry_bnb.panels import CONVERSIONS

    return CONVERSIONS

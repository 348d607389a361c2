"""What the FP8 plugin gives. Nothing heavy happens at import."""

from __future__ import annotations

from collections.abc import Iterable

from quantry import Conversion, Kernel, Layout, Quantizer, UqffCodec, hookimpl


@hookimpl
def quantry_layouts() -> Iterable[type[Layout]]:
    from quantry_fp8.f8q8 import LAYOUTS

    return LAYOUTS


@hookimpl
def quantry_quantizers() -> Iterable[Quantizer]:
    from quantry_fp8.encode import QUANTIZERS

    return QUANTIZERS


@hookimpl
def quantry_conversions() -> Iterable[Conversion]:
    from quantry_fp8.kernels import CONVERSIONS

    return CONVERSIONS


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    from quantry_fp8.kernels import KERNELS

    return KERNELS


@hookimpl
def quantry_uqff_codecs() -> Iterable[UqffCodec]:
    from quantry_fp8.codec import CODECS

    return CODECS

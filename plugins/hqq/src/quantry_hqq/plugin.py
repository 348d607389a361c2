"""What the HQQ plugin gives. Nothing heavy happens at import."""

from __future__ import annotations

from collections.abc import Iterable

from quantry import Conversion, Kernel, Quantizer, UqffCodec, hookimpl


@hookimpl
def quantry_quantizers() -> Iterable[Quantizer]:
    from quantry_hqq.encode import QUANTIZERS

    return QUANTIZERS


@hookimpl
def quantry_conversions() -> Iterable[Conversion]:
    from quantry_hqq.kernels import CONVERSIONS

    return CONVERSIONS


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    from quantry_hqq.kernels import KERNELS

    return KERNELS


@hookimpl
def quantry_uqff_codecs() -> Iterable[UqffCodec]:
    from quantry_hqq.codec import CODECS

    return CODECS

"""What the core itself gives, through the same hooks as any plugin."""

from __future__ import annotations

from collections.abc import Iterable

from quantry.codec import UqffCodec
from quantry.devices import CpuProbe, CudaProbe, DeviceProbe, MpsProbe
from quantry.format import Format
from quantry.hookspecs import hookimpl
from quantry.kernel import Kernel
from quantry.layout import Layout
from quantry.quantizer import Quantizer


@hookimpl
def quantry_formats() -> Iterable[Format]:
    from quantry.safetensors_format import SafetensorsFormat
    from quantry.uqff import UqffFormat

    return [SafetensorsFormat(), UqffFormat()]


@hookimpl
def quantry_layouts() -> Iterable[type[Layout]]:
    from quantry.layouts import Dense, GroupedAffine, GroupedCodebook, ScaledFloat

    return [Dense, GroupedAffine, GroupedCodebook, ScaledFloat]


@hookimpl
def quantry_quantizers() -> Iterable[Quantizer]:
    from quantry.dense_quantizer import QUANTIZERS

    return QUANTIZERS


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    from quantry.reference import ReferenceEmbedding, ReferenceLinear, ReferenceLinearDx
    from quantry.torch_kernels import DenseEmbedding, DenseLinear, DenseLinearDx, ExpertsLoop

    return [
        DenseLinear(),
        DenseLinearDx(),
        DenseEmbedding(),
        ExpertsLoop(),
        ReferenceLinear(),
        ReferenceLinearDx(),
        ReferenceEmbedding(),
    ]


@hookimpl
def quantry_uqff_codecs() -> Iterable[UqffCodec]:
    from quantry.dense_codec import UnquantCodec

    return [UnquantCodec()]


@hookimpl
def quantry_devices() -> Iterable[DeviceProbe]:
    return [CpuProbe(), CudaProbe(), MpsProbe()]

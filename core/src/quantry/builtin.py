"""What the core itself gives, through the same hooks as any plugin."""

from __future__ import annotations

from collections.abc import Iterable

from quantry.codec import UqffCodec
from quantry.convert import Conversion
from quantry.devices import CpuProbe, CudaProbe, DeviceProbe, MpsProbe
from quantry.format import Format
from quantry.hookspecs import hookimpl
from quantry.importance import ImportanceFormat
from quantry.kernel import Kernel
from quantry.layout import Layout
from quantry.quantizer import Quantizer
from quantry.roof import Roof


@hookimpl
def quantry_formats() -> Iterable[Format]:
    from quantry.safetensors_format import SafetensorsFormat
    from quantry.uqff import UqffFormat

    return [SafetensorsFormat(), UqffFormat()]


@hookimpl
def quantry_layouts() -> Iterable[type[Layout]]:
    from quantry import layouts

    return [getattr(layouts, name) for name in layouts.__all__]


@hookimpl
def quantry_conversions() -> Iterable[Conversion]:
    from quantry.panels.conversions import UNPACKING

    return UNPACKING


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
    from quantry.uqff_extension import ExtensionCodec

    return [UnquantCodec(), ExtensionCodec()]


@hookimpl
def quantry_devices() -> Iterable[DeviceProbe]:
    return [CpuProbe(), CudaProbe(), MpsProbe()]


@hookimpl
def quantry_roofs() -> Iterable[Roof]:
    from quantry.bench.torch_roof import TorchRoof

    return [TorchRoof()]


@hookimpl
def quantry_importance_formats() -> Iterable[ImportanceFormat]:
    from quantry.importance_files import SafetensorsImportance

    return [SafetensorsImportance()]

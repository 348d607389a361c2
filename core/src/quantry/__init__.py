"""Quantized weights in PyTorch: packed or error, from any format, on the fastest kernel that is installed.

>>> import quantry
>>> quantry.__version__.count(".")
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name → the module it lives in, imported at first use: `import quantry` imports no torch. No module
# may have the name of a public function: importing it would put the module in the function's place.
_HOME = {
    "Adapter": "adapter",
    "AdapterFormat": "adapter",
    "LowRank": "adapter",
    "read_adapter": "adapter",
    "run_bounded": "bounded",
    "Checkpoint": "checkpoint",
    "open": "checkpoint",
    "UqffCodec": "codec",
    "Conversion": "convert",
    "DeviceInfo": "devices",
    "DeviceProbe": "devices",
    "dtype_name": "dtypes",
    "torch_dtype": "dtypes",
    "MatrixQuantizer": "encoding",
    "Refused": "encoding",
    "RowQuantizer": "encoding",
    "importance_rows": "encoding",
    "DuplicateTensor": "errors",
    "FormatError": "errors",
    "HeaderError": "errors",
    "KernelError": "errors",
    "NoKernelError": "errors",
    "OffsetError": "errors",
    "PluginError": "errors",
    "QuantryError": "errors",
    "ShapeError": "errors",
    "TruncatedFile": "errors",
    "UsageError": "errors",
    "ValueDomainError": "errors",
    "nearest": "errors",
    "Batch": "executor",
    "Executor": "executor",
    "TaskDone": "executor",
    "Workers": "executor",
    "explain": "explanation",
    "Detection": "format",
    "Format": "format",
    "TensorEntry": "format",
    "WeightSource": "format",
    "hookimpl": "hookspecs",
    "Importance": "importance",
    "ImportanceFormat": "importance",
    "read_importance": "importance_files",
    "write_importance": "importance_files",
    "inspect": "inspection",
    "quantize": "isq",
    "pack_block": "isq_checks",
    "pack_layer": "isq_model",
    "quantize_model": "isq_model",
    "BUCKETS": "kernel",
    "Kernel": "kernel",
    "Numerics": "kernel",
    "Problem": "kernel",
    "BufferSpec": "layout",
    "Layout": "layout",
    "Shape": "layout",
    "Dense": "layouts",
    "GroupedAffine": "layouts",
    "GroupedCodebook": "layouts",
    "ScaledFloat": "layouts",
    "pack_codes": "layouts.bitpack",
    "unpack_codes": "layouts.bitpack",
    "OpenWork": "isq_remote",
    "RemoteWork": "isq_remote",
    "load_model": "load",
    "WeightUse": "measurement",
    "ModulePacker": "module_packer",
    "measure": "measurement",
    "NativeLibrary": "native",
    "matmul": "multiply",
    "AdaptedEmbedding": "nn",
    "AdaptedExperts": "nn",
    "AdaptedLinear": "nn",
    "LinearGroup": "nn",
    "QuantEmbedding": "nn",
    "QuantExperts": "nn",
    "QuantLinear": "nn",
    "PackedModule": "nn",
    "TiedHead": "nn",
    "prepare": "nn",
    "swap": "nn",
    "panel_conversions": "panels",
    "panel_kernels": "panels",
    "peak_rss_bytes": "process_memory",
    "registry": "plugins",
    "reload": "plugins",
    "progress": "cli.progress",
    "Policy": "policy",
    "current_policy": "policy",
    "use": "policy",
    "Quantizer": "quantizer",
    "canonical_name": "quantizer",
    "Decision": "resolve",
    "Role": "roles",
    "role_of": "roles",
    "Roof": "roof",
    "Calibrated": "runtime",
    "Exported": "runtime",
    "Observer": "runtime",
    "Runtime": "runtime",
    "MappedFile": "source",
    "Source": "source",
    "release_pages": "source",
    "QuantizedTensor": "tensor",
    "forget_times": "timings",
    "save_uqff": "uqff_write",
    "verify": "verification",
}

_RENAMED = {"open": "open_checkpoint", "pack_block": "packed", "pack_codes": "pack", "unpack_codes": "unpack"}

__all__ = [
    "__version__",
    "AdaptedEmbedding",
    "AdaptedExperts",
    "AdaptedLinear",
    "Adapter",
    "AdapterFormat",
    "BUCKETS",
    "Batch",
    "BufferSpec",
    "Calibrated",
    "Checkpoint",
    "Conversion",
    "Decision",
    "Dense",
    "Detection",
    "DeviceInfo",
    "DeviceProbe",
    "DuplicateTensor",
    "Executor",
    "Exported",
    "Format",
    "FormatError",
    "GroupedAffine",
    "GroupedCodebook",
    "HeaderError",
    "Importance",
    "ImportanceFormat",
    "Kernel",
    "KernelError",
    "Layout",
    "LinearGroup",
    "LowRank",
    "MappedFile",
    "MatrixQuantizer",
    "ModulePacker",
    "NativeLibrary",
    "NoKernelError",
    "Numerics",
    "Observer",
    "OffsetError",
    "OpenWork",
    "PackedModule",
    "PluginError",
    "Policy",
    "Problem",
    "QuantEmbedding",
    "QuantExperts",
    "QuantLinear",
    "QuantizedTensor",
    "Quantizer",
    "QuantryError",
    "Refused",
    "RemoteWork",
    "Role",
    "Roof",
    "RowQuantizer",
    "Runtime",
    "ScaledFloat",
    "Shape",
    "ShapeError",
    "Source",
    "TaskDone",
    "TensorEntry",
    "TiedHead",
    "TruncatedFile",
    "UqffCodec",
    "UsageError",
    "ValueDomainError",
    "WeightSource",
    "WeightUse",
    "Workers",
    "canonical_name",
    "current_policy",
    "dtype_name",
    "explain",
    "forget_times",
    "hookimpl",
    "importance_rows",
    "inspect",
    "load_model",
    "matmul",
    "measure",
    "nearest",
    "open",
    "pack_block",
    "pack_codes",
    "pack_layer",
    "panel_conversions",
    "panel_kernels",
    "peak_rss_bytes",
    "prepare",
    "progress",
    "quantize",
    "quantize_model",
    "read_adapter",
    "read_importance",
    "registry",
    "release_pages",
    "reload",
    "role_of",
    "run_bounded",
    "save_uqff",
    "swap",
    "torch_dtype",
    "unpack_codes",
    "use",
    "verify",
    "write_importance",
]

if TYPE_CHECKING:
    from quantry.adapter import Adapter, AdapterFormat, LowRank, read_adapter
    from quantry.bounded import run_bounded
    from quantry.checkpoint import Checkpoint, open_checkpoint
    from quantry.cli.progress import progress
    from quantry.codec import UqffCodec
    from quantry.convert import Conversion
    from quantry.devices import DeviceInfo, DeviceProbe
    from quantry.dtypes import dtype_name, torch_dtype
    from quantry.encoding import MatrixQuantizer, Refused, RowQuantizer, importance_rows
    from quantry.errors import (
        DuplicateTensor,
        FormatError,
        HeaderError,
        KernelError,
        NoKernelError,
        OffsetError,
        PluginError,
        QuantryError,
        ShapeError,
        TruncatedFile,
        UsageError,
        ValueDomainError,
        nearest,
    )
    from quantry.executor import Batch, Executor, TaskDone, Workers
    from quantry.explanation import explain
    from quantry.format import Detection, Format, TensorEntry, WeightSource
    from quantry.hookspecs import hookimpl
    from quantry.importance import Importance, ImportanceFormat
    from quantry.importance_files import read_importance, write_importance
    from quantry.inspection import inspect
    from quantry.isq import quantize
    from quantry.isq_checks import packed as pack_block
    from quantry.isq_model import pack_layer, quantize_model
    from quantry.isq_remote import OpenWork, RemoteWork
    from quantry.kernel import BUCKETS, Kernel, Numerics, Problem
    from quantry.layout import BufferSpec, Layout, Shape
    from quantry.layouts import Dense, GroupedAffine, GroupedCodebook, ScaledFloat
    from quantry.layouts.bitpack import pack as pack_codes
    from quantry.layouts.bitpack import unpack as unpack_codes
    from quantry.load import load_model
    from quantry.measurement import WeightUse, measure
    from quantry.module_packer import ModulePacker
    from quantry.multiply import matmul
    from quantry.native import NativeLibrary
    from quantry.nn import (
        AdaptedEmbedding,
        AdaptedExperts,
        AdaptedLinear,
        LinearGroup,
        PackedModule,
        QuantEmbedding,
        QuantExperts,
        QuantLinear,
        TiedHead,
        prepare,
        swap,
    )
    from quantry.panels import panel_conversions, panel_kernels
    from quantry.plugins import registry, reload
    from quantry.policy import Policy, current_policy, use
    from quantry.process_memory import peak_rss_bytes
    from quantry.quantizer import Quantizer, canonical_name
    from quantry.resolve import Decision
    from quantry.roles import Role, role_of
    from quantry.roof import Roof
    from quantry.runtime import Calibrated, Exported, Observer, Runtime
    from quantry.source import MappedFile, Source, release_pages
    from quantry.tensor import QuantizedTensor
    from quantry.timings import forget_times
    from quantry.uqff_write import save_uqff
    from quantry.verification import verify

    open = open_checkpoint


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'quantry' has no attribute {name!r}")
    module = importlib.import_module(f"quantry.{home}")
    value = getattr(module, _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

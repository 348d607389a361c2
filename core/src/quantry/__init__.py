"""Quantized weights in PyTorch: packed or error, from any format, on the fastest kernel that is installed.

>>> import quantry
>>> quantry.__version__.count(".")
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# module → the public names that live in it, imported at first use: `import quantry` imports no torch. No
# module may have the name of a public function: importing it would put the module in the function's place.
_NAMES = {
    "adapter": "Adapter AdapterFormat LowRank read_adapter",
    "bounded": "check_fits flight_bytes run_bounded",
    "checkpoint": "Checkpoint open",
    "cli.progress": "progress",
    "codec": "UqffCodec",
    "convert": "Conversion",
    "devices": "DeviceInfo DeviceProbe",
    "dtypes": "dtype_name torch_dtype",
    "encoding": "MatrixQuantizer Refused RowQuantizer importance_rows",
    "errors": (
        "DuplicateTensor FormatError HeaderError KernelError NoKernelError OffsetError PluginError "
        "QuantryError ShapeError TruncatedFile UsageError ValueDomainError nearest"
    ),
    "executor": "Batch Executor TaskDone Workers",
    "explanation": "explain",
    "format": "Detection Format TensorEntry WeightSource",
    "hookspecs": "hookimpl",
    "importance": "Importance ImportanceFormat",
    "importance_files": "importance_by_weight importance_format model_names read_importance write_importance",
    "inspection": "inspect",
    "isq": "quantize",
    "isq_checks": "pack_block",
    "isq_model": "pack_layer quantize_model",
    "isq_remote": "OpenWork RemoteWork",
    "kernel": "BUCKETS Kernel Numerics Problem",
    "layout": "BufferSpec Layout Shape",
    "layouts": "Dense GroupedAffine GroupedCodebook ScaledFloat",
    "layouts.bitpack": "pack_codes unpack_codes",
    "load": "load_model",
    "measurement": "WeightUse measure",
    "module_packer": "ModulePacker",
    "multiply": "matmul",
    "native": "NativeLibrary",
    "nn": (
        "AdaptedEmbedding AdaptedExperts AdaptedLinear LinearGroup QuantEmbedding QuantExperts "
        "QuantLinear PackedModule TiedHead prepare swap"
    ),
    "panels": "panel_conversions panel_kernels",
    "part_file": "PartFile write_whole",
    "plugins": "registry reload",
    "policy": "Policy current_policy use",
    "process_memory": "peak_rss_bytes",
    "quantizer": "Quantizer canonical_name",
    "resolve": "Decision",
    "roles": "Role expert_parts expert_slot role_of",
    "roof": "Roof",
    "runtime": "Calibrated Exported Observer Runtime",
    "source": "MappedFile Source release_pages",
    "tensor": "QuantizedTensor",
    "timings": "forget_times",
    "uqff_write": "save_uqff",
    "verification": "verify",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_RENAMED = {"open": "open_checkpoint", "pack_block": "packed", "pack_codes": "pack", "unpack_codes": "unpack"}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from quantry.adapter import (
        Adapter as Adapter,
        AdapterFormat as AdapterFormat,
        LowRank as LowRank,
        read_adapter as read_adapter,
    )
    from quantry.bounded import (
        check_fits as check_fits,
        flight_bytes as flight_bytes,
        run_bounded as run_bounded,
    )
    from quantry.checkpoint import Checkpoint as Checkpoint, open_checkpoint as open_checkpoint
    from quantry.cli.progress import progress as progress
    from quantry.codec import UqffCodec as UqffCodec
    from quantry.convert import Conversion as Conversion
    from quantry.devices import DeviceInfo as DeviceInfo, DeviceProbe as DeviceProbe
    from quantry.dtypes import dtype_name as dtype_name, torch_dtype as torch_dtype
    from quantry.encoding import (
        MatrixQuantizer as MatrixQuantizer,
        Refused as Refused,
        RowQuantizer as RowQuantizer,
        importance_rows as importance_rows,
    )
    from quantry.errors import (
        DuplicateTensor as DuplicateTensor,
        FormatError as FormatError,
        HeaderError as HeaderError,
        KernelError as KernelError,
        NoKernelError as NoKernelError,
        OffsetError as OffsetError,
        PluginError as PluginError,
        QuantryError as QuantryError,
        ShapeError as ShapeError,
        TruncatedFile as TruncatedFile,
        UsageError as UsageError,
        ValueDomainError as ValueDomainError,
        nearest as nearest,
    )
    from quantry.executor import (
        Batch as Batch,
        Executor as Executor,
        TaskDone as TaskDone,
        Workers as Workers,
    )
    from quantry.explanation import explain as explain
    from quantry.format import (
        Detection as Detection,
        Format as Format,
        TensorEntry as TensorEntry,
        WeightSource as WeightSource,
    )
    from quantry.hookspecs import hookimpl as hookimpl
    from quantry.importance import Importance as Importance, ImportanceFormat as ImportanceFormat
    from quantry.importance_files import (
        importance_by_weight as importance_by_weight,
        importance_format as importance_format,
        model_names as model_names,
        read_importance as read_importance,
        write_importance as write_importance,
    )
    from quantry.inspection import inspect as inspect
    from quantry.isq import quantize as quantize
    from quantry.isq_checks import packed
    from quantry.isq_model import pack_layer as pack_layer, quantize_model as quantize_model
    from quantry.isq_remote import OpenWork as OpenWork, RemoteWork as RemoteWork
    from quantry.kernel import BUCKETS as BUCKETS, Kernel as Kernel, Numerics as Numerics, Problem as Problem
    from quantry.layout import BufferSpec as BufferSpec, Layout as Layout, Shape as Shape
    from quantry.layouts import (
        Dense as Dense,
        GroupedAffine as GroupedAffine,
        GroupedCodebook as GroupedCodebook,
        ScaledFloat as ScaledFloat,
    )
    from quantry.layouts.bitpack import pack, unpack
    from quantry.load import load_model as load_model
    from quantry.measurement import WeightUse as WeightUse, measure as measure
    from quantry.module_packer import ModulePacker as ModulePacker
    from quantry.multiply import matmul as matmul
    from quantry.native import NativeLibrary as NativeLibrary
    from quantry.nn import (
        AdaptedEmbedding as AdaptedEmbedding,
        AdaptedExperts as AdaptedExperts,
        AdaptedLinear as AdaptedLinear,
        LinearGroup as LinearGroup,
        PackedModule as PackedModule,
        QuantEmbedding as QuantEmbedding,
        QuantExperts as QuantExperts,
        QuantLinear as QuantLinear,
        TiedHead as TiedHead,
        prepare as prepare,
        swap as swap,
    )
    from quantry.panels import panel_conversions as panel_conversions, panel_kernels as panel_kernels
    from quantry.part_file import PartFile as PartFile, write_whole as write_whole
    from quantry.plugins import registry as registry, reload as reload
    from quantry.policy import Policy as Policy, current_policy as current_policy, use as use
    from quantry.process_memory import peak_rss_bytes as peak_rss_bytes
    from quantry.quantizer import Quantizer as Quantizer, canonical_name as canonical_name
    from quantry.resolve import Decision as Decision
    from quantry.roles import (
        Role as Role,
        expert_parts as expert_parts,
        expert_slot as expert_slot,
        role_of as role_of,
    )
    from quantry.roof import Roof as Roof
    from quantry.runtime import (
        Calibrated as Calibrated,
        Exported as Exported,
        Observer as Observer,
        Runtime as Runtime,
    )
    from quantry.source import MappedFile as MappedFile, Source as Source, release_pages as release_pages
    from quantry.tensor import QuantizedTensor as QuantizedTensor
    from quantry.timings import forget_times as forget_times
    from quantry.uqff_write import save_uqff as save_uqff
    from quantry.verification import verify as verify

    open, pack_block, pack_codes, unpack_codes = open_checkpoint, packed, pack, unpack


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

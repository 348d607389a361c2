"""What the GGUF plugin gives. Nothing heavy happens at import."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantry import (
    AdapterFormat,
    Conversion,
    Format,
    ImportanceFormat,
    Kernel,
    Layout,
    Quantizer,
    Roof,
    UqffCodec,
    hookimpl,
)

if TYPE_CHECKING:
    import click


@hookimpl
def quantry_formats() -> Iterable[Format]:
    from quantry_gguf.reader import FORMATS

    return FORMATS


@hookimpl
def quantry_layouts() -> Iterable[type[Layout]]:
    from quantry_gguf.layout import GgmlBlocks
    from quantry_gguf.panel import LAYOUTS

    return [GgmlBlocks, *LAYOUTS]


@hookimpl
def quantry_conversions() -> Iterable[Conversion]:
    from quantry_gguf.panel import CONVERSIONS

    return CONVERSIONS


@hookimpl
def quantry_quantizers() -> Iterable[Quantizer]:
    from quantry_gguf import encode, encode_grid

    return [*encode.QUANTIZERS, *encode_grid.QUANTIZERS]


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    from quantry_gguf import kernels, row_kernels

    return [*kernels.KERNELS, *row_kernels.KERNELS]


@hookimpl
def quantry_uqff_codecs() -> Iterable[UqffCodec]:
    from quantry_gguf.codec import CODECS

    return CODECS


@hookimpl
def quantry_roofs() -> Iterable[Roof]:
    from quantry_gguf.roof import ROOFS

    return ROOFS


@hookimpl
def quantry_importance_formats() -> Iterable[ImportanceFormat]:
    from quantry_gguf.imatrix_binary import Cimatrix, LegacyImatrix
    from quantry_gguf.imatrix_gguf import GgufImatrix

    return [LegacyImatrix(), GgufImatrix(), Cimatrix()]


@hookimpl
def quantry_commands(cli: click.Group) -> None:
    from quantry_gguf.command import gguf

    cli.commands["convert"].add_command(gguf)  # type: ignore[attr-defined]  # it is a group


@hookimpl
def quantry_adapter_formats() -> Iterable[AdapterFormat]:
    from quantry_gguf.adapter import GgufLora

    return [GgufLora()]

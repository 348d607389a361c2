"""The whole extension surface of Quantry: what a plugin may give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    import click

    from quantry.adapter import AdapterFormat
    from quantry.codec import UqffCodec
    from quantry.convert import Conversion
    from quantry.devices import DeviceProbe
    from quantry.executor import Executor
    from quantry.format import Format
    from quantry.importance import ImportanceFormat
    from quantry.kernel import Kernel
    from quantry.layout import Layout
    from quantry.module_packer import ModulePacker
    from quantry.quantizer import Quantizer
    from quantry.roof import Roof

__all__ = ["hookimpl", "hookspec"]

hookspec = HookspecMarker("quantry")
hookimpl = HookimplMarker("quantry")


@hookspec
def quantry_formats() -> Iterable[Format]:  # type: ignore[empty-body]
    """Checkpoint formats that can be detected and loaded."""


@hookspec
def quantry_layouts() -> Iterable[type[Layout]]:  # type: ignore[empty-body]
    """New layout families: what packed bytes mean. Most plugins need none."""


@hookspec
def quantry_conversions() -> Iterable[Conversion]:  # type: ignore[empty-body]
    """Exact rewrites of one layout as another."""


@hookspec
def quantry_quantizers() -> Iterable[Quantizer]:  # type: ignore[empty-body]
    """Named targets for quantizing a dense weight, in place (ISQ) or calibrated."""


@hookspec
def quantry_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Kernels: one op on one layout family on one device type."""


@hookspec
def quantry_uqff_codecs() -> Iterable[UqffCodec]:  # type: ignore[empty-body]
    """Codecs of UQFF tags: packed weight to named entries and back."""


@hookspec
def quantry_devices() -> Iterable[DeviceProbe]:  # type: ignore[empty-body]
    """Probes for device types torch knows and the core does not."""


@hookspec
def quantry_runtimes() -> Iterable[object]:  # type: ignore[empty-body]
    """Runtimes that build and run a whole model from a checkpoint."""


@hookspec
def quantry_roofs() -> Iterable[Roof]:  # type: ignore[empty-body]
    """Probes of what a device can do at most, for `quantry bench`."""


@hookspec
def quantry_module_packers() -> Iterable[ModulePacker]:  # type: ignore[empty-body]
    """Ways to pack modules that are neither linear layers nor embeddings, for ISQ in place."""


@hookspec
def quantry_importance_formats() -> Iterable[ImportanceFormat]:  # type: ignore[empty-body]
    """Kinds of files that hold importance per input column."""


@hookspec
def quantry_adapter_formats() -> Iterable[AdapterFormat]:  # type: ignore[empty-body]
    """Kinds of files that hold adapters."""


@hookspec
def quantry_executors() -> Iterable[Executor]:  # type: ignore[empty-body]
    """Ways to run the work of quantizing on other machines."""


@hookspec
def quantry_commands(cli: click.Group) -> None:
    """Add commands to the `quantry` command line."""

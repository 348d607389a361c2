"""Grouped layouts to panels by native code, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from quantry.convert import Conversion
from quantry.layout import Layout, Shape
from quantry.layouts import (
    AffinePanel,
    CodebookPanel,
    FloatPanel,
    GroupedAffine,
    GroupedCodebook,
    ScaledFloat,
)
from quantry.layouts.panel import PanelLayout
from quantry.layouts.planes import PLANES
from quantry.native import NativeLibrary
from quantry.panels.abi import REPACKING, panel_layout
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILIES", "UNPACKING", "PackPanels", "panel_conversions", "panels_of"]

FAMILIES = ("affine", "codebook", "float")
"""Layout families that have panels."""


def panel_conversions(library: NativeLibrary, families: Sequence[str] = FAMILIES) -> list[Conversion]:
    """The ways from each family to its panels, packed by `<prefix>_grouped_pack` of `library`.

    Several plugins may give the same way: the first that is installed with its library is taken. The ways
    back are the core's own.
    """
    library.declare(REPACKING)
    return [
        type(f"PackPanels[{library.dist}]", (PackPanels,), {
            "library": library,
            "source": family,
            "target": f"{family}_panel",
            "__module__": __name__,
        })()
        for family in families
    ]  # fmt: skip


def panels_of(layout: Layout) -> PanelLayout | None:
    """The panel layout of the same bits, None for other families."""
    if isinstance(layout, GroupedAffine):
        return AffinePanel.of(layout)
    if isinstance(layout, GroupedCodebook):
        return CodebookPanel.of(layout)
    return FloatPanel.of(layout) if isinstance(layout, ScaledFloat) else None


class PackPanels(Conversion):
    """A layout's own order to panels, panel by panel, on torch's threads."""

    library: ClassVar[NativeLibrary]

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The panels of the layout, where they hold the shape and the native library is there."""
        made = panels_of(layout) if layout.family == self.source else None
        if made is None or made.why_not(shape) is not None or self.library.why_not() is not None:
            return None
        return made

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Into fresh memory on the CPU; the source is only read."""
        import torch

        layout = panel_layout(target)
        source = {name: buffer.cpu() for name, buffer in qt.buffers.items()}
        made = {
            name: torch.empty(spec.shape, dtype=torch.uint8)
            for name, spec in layout.buffers(qt.shape).items()
            if name in PLANES[layout.code_bits]
        }
        _repack(self.library, "pack", layout, qt.shape, source["codes"], made)
        for name, buffer in layout.sides(source, qt.shape).items():
            shared = buffer.data_ptr() == source[name].data_ptr()
            made[name] = buffer.clone() if shared else buffer
        return QuantizedTensor(target, qt.shape, made)


class _UnpackPanels(Conversion):
    """Panels to the layout's own order: the bytes that were packed."""

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The layout whose bits the panels hold."""
        fits = isinstance(layout, PanelLayout) and layout.family == self.source
        return panel_layout(layout).source if fits else None

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Into fresh memory; by torch where no plugin with a native library is installed."""
        import torch

        layout, library = panel_layout(qt.layout), _installed_library()
        buffers = {name: buffer.cpu() for name, buffer in qt.buffers.items()}
        if library is None:
            codes = layout.codes(buffers, qt.shape)
        else:
            codes = torch.empty(target.buffers(qt.shape)["codes"].shape, dtype=torch.uint8)
            _repack(library, "unpack", layout, qt.shape, codes, buffers)
        made = {"codes": codes}
        for name, buffer in layout.sides_of_rows(buffers, qt.shape).items():
            shared = buffer.data_ptr() == buffers[name].data_ptr()
            made[name] = buffer.clone() if shared else buffer
        return QuantizedTensor(target, qt.shape, made)


class UnpackAffine(_UnpackPanels):
    """affine_panel to affine."""

    source, target = "affine_panel", "affine"


class UnpackCodebook(_UnpackPanels):
    """codebook_panel to codebook."""

    source, target = "codebook_panel", "codebook"


class UnpackFloat(_UnpackPanels):
    """float_panel to float."""

    source, target = "float_panel", "float"


UNPACKING: list[Conversion] = [UnpackAffine(), UnpackCodebook(), UnpackFloat()]
"""The core's own: a packed weight can be saved though its plugin is gone."""


def _installed_library() -> NativeLibrary | None:
    from quantry.plugins import registry

    packing = (edge for edge in registry().conversions if isinstance(edge, PackPanels))
    return next((edge.library for edge in packing if edge.library.why_not() is None), None)


def _repack(
    library: NativeLibrary,
    name: str,
    layout: PanelLayout,
    shape: Shape,
    stream: Tensor,
    planes: Mapping[str, Tensor],
) -> None:
    *lead, rows, columns = shape
    affine = layout if isinstance(layout, AffinePanel) else None
    across = affine is not None and affine.axis == "out"
    group = (affine.group or rows) if affine is not None and across else 0
    widths = PLANES[layout.code_bits]
    addresses = [planes[n].data_ptr() if n in widths else None for n in ("codes", "high", "top")]
    status = library.function(f"grouped_{name}")(
        library.target(),
        layout.code_bits,
        affine is not None and affine.zero == "none",
        math.prod(lead),
        rows,
        columns,
        group,
        stream.data_ptr(),
        stream.nbytes,
        *addresses,
        sum(planes[n].nbytes for n in widths),
        library.threads(),
    )
    if status:
        library.fail(status, f"{name} {layout} {list(shape)}")

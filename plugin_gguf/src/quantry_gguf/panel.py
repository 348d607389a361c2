"""The layout family `ggml_panel`: ggml blocks with 16 rows interleaved, as the CPU kernels read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from quantry import BufferSpec, Conversion, Layout, QuantizedTensor, ShapeError, UsageError, nearest
from quantry_gguf import native
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.types import BY_NAME, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

    from quantry import Shape

__all__ = ["CONVERSIONS", "LAYOUTS", "PLANES", "ROWS", "GgmlPanel", "PlaneBytes"]

ROWS = 16
"""Rows of a panel; the last panel of a matrix is padded with zero codes and zero scales."""


class PlaneBytes(NamedTuple):
    """Bytes of a panel: per 32 columns in `codes` and `high`, per block in `meta`."""

    codes: int
    high: int
    meta: int


# native: quantry/ggml/formats.h, which draws the planes
PLANES = {
    "q4_0": PlaneBytes(256, 0, 32),
    "q4_1": PlaneBytes(256, 0, 64),
    "q5_0": PlaneBytes(256, 64, 32),
    "q5_1": PlaneBytes(256, 64, 64),
    "q8_0": PlaneBytes(512, 0, 32),
    "q8_1": PlaneBytes(512, 0, 64),
    "q2_k": PlaneBytes(128, 0, 320),
    "q3_k": PlaneBytes(128, 64, 224),
    "q4_k": PlaneBytes(256, 0, 256),
    "q5_k": PlaneBytes(256, 64, 256),
    "q6_k": PlaneBytes(256, 128, 288),
    "iq4_nl": PlaneBytes(256, 0, 32),
    "iq4_xs": PlaneBytes(256, 0, 128),
    "tq2_0": PlaneBytes(128, 0, 32),
    "mxfp4": PlaneBytes(256, 0, 16),
    "nvfp4": PlaneBytes(256, 0, 64),
    "q1_0": PlaneBytes(64, 0, 32),
    "q2_0": PlaneBytes(128, 0, 32),
}


@dataclass(frozen=True, slots=True)
class GgmlPanel(Layout):
    """The bits of `ggml:<type>` in planes, e.g. `ggml_panel:q4_k`; the same size but for rows padded to 16.

    Buffers, uint8 [*lead, P, bytes] for P = ceil(N / 16) panels: `codes`, the low 1, 2, 4 or all 8 bits of
    the codes, `high`, the bits above (3-, 5- and 6-bit types only), `meta`, the scales.

    >>> {n: b.shape for n, b in GgmlPanel("q5_0").buffers((33, 64)).items()}
    {'codes': (3, 512), 'high': (3, 128), 'meta': (3, 64)}
    """

    family: ClassVar[str] = "ggml_panel"
    storable: ClassVar[bool] = False

    type: str

    def __post_init__(self) -> None:
        if self.type not in PLANES:
            raise UsageError(f"{self.type!r} has no panel packing", hint=nearest(self.type, PLANES))

    @property
    def ggml(self) -> GgmlType:
        """The row of the type table."""
        return BY_NAME[self.type]

    @property
    def published_activations(self) -> tuple[str, ...]:
        """ggml's own: the packing changes no number."""
        return GgmlBlocks(self.type).published_activations

    def why_not(self, shape: Shape) -> str | None:
        """None for matrices and stacks of them whose columns are a multiple of the block."""
        if len(shape) < 2:
            return "a panel holds 16 rows of a matrix; this tensor has one dimension"
        return GgmlBlocks(self.type).why_not(shape)

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`codes`, `high` where the type has it, `meta`."""
        *lead, rows, columns = shape
        planes, panels = PLANES[self.type], -(-rows // ROWS)
        sizes = {
            "codes": columns // 32 * planes.codes,
            "high": columns // 32 * planes.high,
            "meta": columns // self.ggml.block * planes.meta,
        }
        return {
            n: BufferSpec("u8", (*lead, panels, size))
            for n, size in sizes.items()
            if PLANES[self.type].high or n != "high"
        }

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Back to file order, bit for bit, and from there by the definition of `ggml`."""
        return GgmlBlocks(self.type).dequantize({"blocks": _unpack(self, buffers, shape)}, shape)

    def step(self, dim: int) -> int | None:
        """Whole panels along N, whole 256 columns along K (the planes of a block are contiguous)."""
        return {-2: ROWS, -1: self.ggml.block}.get(dim)

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views: panels along N, a run of each panel along K."""
        if dim == -2:
            return {n: b.narrow(-2, start // ROWS, -(-length // ROWS)) for n, b in buffers.items()}
        if dim == -1:
            first = {n: spec.shape[-1] for n, spec in self.buffers((ROWS, start)).items()}
            size = {n: spec.shape[-1] for n, spec in self.buffers((ROWS, length)).items()}
            return {n: b.narrow(-1, first[n], size[n]) for n, b in buffers.items()}
        raise ShapeError(f"{self} cannot be sliced along dimension {dim}")


class PackPanels(Conversion):
    """File order to panels, panel by panel, on torch's threads."""

    source = "ggml"
    target = "ggml_panel"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The panel packing of the type, where there is one and the native library is there to make it."""
        if not isinstance(layout, GgmlBlocks) or layout.type not in PLANES or native.why_not() is not None:
            return None
        made = GgmlPanel(layout.type)
        return made if made.why_not(shape) is None else None

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Into fresh memory on the CPU; the source is only read."""
        assert isinstance(target, GgmlPanel)  # what target_for gave
        return QuantizedTensor(target, qt.shape, _pack(target, qt.buffers["blocks"].cpu(), qt.shape))


class UnpackPanels(Conversion):
    """Panels to file order: the bytes that were packed."""

    source = "ggml_panel"
    target = "ggml"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The file-order layout of the same type."""
        return GgmlBlocks(layout.type) if isinstance(layout, GgmlPanel) else None

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Into fresh memory."""
        assert isinstance(qt.layout, GgmlPanel)  # what target_for saw
        return QuantizedTensor(target, qt.shape, {"blocks": _unpack(qt.layout, qt.buffers, qt.shape)})


def _pack(layout: GgmlPanel, blocks: Tensor, shape: Shape) -> dict[str, Tensor]:
    import torch

    planes = {n: torch.empty(spec.shape, dtype=torch.uint8) for n, spec in layout.buffers(shape).items()}
    _repack("pack", layout, blocks, planes, shape)
    return planes


def _unpack(layout: GgmlPanel, planes: Mapping[str, Tensor], shape: Shape) -> Tensor:
    import torch

    spec = GgmlBlocks(layout.type).buffers(shape)["blocks"]
    blocks = torch.empty(spec.shape, dtype=torch.uint8)
    _repack("unpack", layout, blocks, {n: b.cpu() for n, b in planes.items()}, shape)
    return blocks


def _repack(name: str, layout: GgmlPanel, blocks: Tensor, planes: Mapping[str, Tensor], shape: Shape) -> None:
    *lead, rows, columns = shape
    high = planes.get("high")
    status = getattr(native.library(), f"quantry_gguf_{name}")(
        native.target(),
        layout.ggml.id,
        math.prod(lead),
        rows,
        columns,
        blocks.data_ptr(),
        blocks.nbytes,
        planes["codes"].data_ptr(),
        None if high is None else high.data_ptr(),
        planes["meta"].data_ptr(),
        sum(b.nbytes for b in planes.values()),
        native.threads(),
    )
    if status:
        native.fail(status, f"{name} {layout} {list(shape)}")


LAYOUTS: list[type[Layout]] = [GgmlPanel]
CONVERSIONS: list[Conversion] = [PackPanels(), UnpackPanels()]

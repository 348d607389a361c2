"""torch's own 4-bit product on CPUs: its packing as a private layout, the exact way there and back, the
kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from quantry import (
    BufferSpec,
    Conversion,
    GroupedAffine,
    Kernel,
    Layout,
    Numerics,
    Problem,
    QuantizedTensor,
    Shape,
    ShapeError,
    pack_codes,
    unpack_codes,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CONVERSIONS",
    "KERNELS",
    "Int4PackLinear",
    "Int4PackLinearDx",
    "PackInt4",
    "TorchInt4Pack",
    "UnpackInt4",
    "packing_of",
]

_GROUPS = (32, 64, 128, 256)  # aten/src/ATen/native/LinearAlgebra.cpp, _weight_int4pack_mm_cpu
_ROWS = 16  # the same: N must be a multiple
# rows of a full block, by vector width (aten/src/ATen/native/cpu/int4mm_kernel.cpp: BLOCK_N)
_BLOCK = {"AVX512": 64, "AVX2": 32}
_TILE_BYTES = 4 << 20  # float32 bytes of the rows that the backward widens at a time


@dataclass(frozen=True, slots=True)
class TorchInt4Pack(Layout):
    """4-bit codes with a scale per group as `torch._weight_int4pack_mm_for_cpu` reads them; all zeros are 0.

    ```
    codes             uint8 [N, K/2]   blocks of `block` rows, each column by column: byte j of a column has
                                       row j in bits 0-3 and row j + block/2 in bits 4-7. The last N % block
                                       rows are a block of neighbours: rows 2j and 2j+1
    scales_and_zeros  [K/group, N, 2]
    ```
    `block` depends on the vector width of the machine, so it is part of the layout.

    >>> str(TorchInt4Pack(128, "bf16", 64))
    'torch_int4pack:g128,bf16,n64'
    """

    family: ClassVar[str] = "torch_int4pack"
    storable: ClassVar[bool] = False

    group: int = field(metadata={"prefix": "g"})
    scale: str
    block: int = field(metadata={"prefix": "n"})

    def why_not(self, shape: Shape) -> str | None:
        """None for a matrix of whole groups and a multiple of 16 rows."""
        if len(shape) != 2:
            return f"it packs one matrix (out_features, in_features), not {len(shape)} dimensions"
        if min(shape) < 0:
            return f"size {min(shape)} is negative"
        if shape[0] % _ROWS:
            return f"{shape[0]} rows are not a multiple of {_ROWS}"
        if not shape[1] or shape[1] % self.group:
            return f"{shape[1]} columns are not whole groups of {self.group}"
        return None

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`codes`, `scales_and_zeros`."""
        n, k = shape
        return {
            "codes": BufferSpec("u8", (n, k // 2)),
            "scales_and_zeros": BufferSpec(self.scale, (k // self.group, n, 2)),
        }

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Float32 [N, K]."""
        return _unpacked(self, buffers, shape).dequantize()

    def step(self, dim: int) -> int | None:
        """Whole blocks of rows; columns lie inside a block."""
        return self.block if dim == -2 else None

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of whole blocks of rows."""
        if dim != -2:
            raise ShapeError(
                f"{self} cannot be sliced along in_features: a block of rows is one run of bytes"
            )
        return {
            "codes": buffers["codes"].narrow(0, start, length),
            "scales_and_zeros": buffers["scales_and_zeros"].narrow(1, start, length),
        }


def packing_of(layout: Layout, shape: Shape) -> TorchInt4Pack | None:
    """The packing that says exactly what `layout` does on this machine, or None.

    Only zero kind "mid", (code - 8) * scale, is the op's own arithmetic; other zeros become numbers that its
    `zero` rounds.
    """
    if not isinstance(layout, GroupedAffine) or layout.perm or layout.group not in _GROUPS:
        return None
    if (layout.bits, layout.axis, layout.zero) != (4, "in", "mid"):
        return None
    import torch

    block = _BLOCK.get(torch.backends.cpu.get_cpu_capability())
    packing = None if block is None else TorchInt4Pack(layout.group, layout.scale, block)
    return packing if packing is not None and packing.why_not(shape) is None else None


class PackInt4(Conversion):
    """affine:b4,g…,in,mid to torch's packing."""

    source, target = "affine", "torch_int4pack"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """See `packing_of`."""
        return packing_of(layout, shape)

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """By torch's own packing op."""
        import torch

        k = qt.shape[-1]
        codes = unpack_codes(qt.buffers["codes"], 4, k).to(torch.int32)
        packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = qt.buffers["scales"].T  # [K/group, N]
        both = torch.stack([scales, torch.zeros_like(scales)], -1)
        return QuantizedTensor(target, qt.shape, {"codes": packed, "scales_and_zeros": both.contiguous()})


class UnpackInt4(Conversion):
    """The way back, for saving and for other machines: written from the drawing of the layout."""

    source, target = "torch_int4pack", "affine"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """The one layout that was packed."""
        if not isinstance(layout, TorchInt4Pack):
            return None
        return GroupedAffine(4, layout.group, "in", "mid", layout.scale)  # type: ignore[arg-type]

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Bit for bit what PackInt4 was given."""
        assert isinstance(qt.layout, TorchInt4Pack)
        return _unpacked(qt.layout, qt.buffers, qt.shape)


class Int4PackLinear(Kernel):
    """`torch._weight_int4pack_mm_for_cpu`: weights widened to float32, activations as given, float32 sums.

    torch has vector code for bf16 activations only; with others it takes some hundred times as long.
    """

    name, op, family, device, priority = "torch.int4pack", "linear", "torch_int4pack", "cpu", -10
    numerics = Numerics(accumulate="f32", activations="exact", deterministic=True)

    def why_not(self, problem: Problem) -> str | None:
        """Scales must be those of the activations' type, or widen to it."""
        assert isinstance(problem.layout, TorchInt4Pack)
        if problem.dtype not in ("f32", problem.layout.scale):
            return (
                f"scales are {problem.layout.scale}: torch multiplies f32 or equal types, not {problem.dtype}"
            )
        import torch

        here = _BLOCK.get(torch.backends.cpu.get_cpu_capability())
        if here != problem.layout.block:
            return f"packed for blocks of {problem.layout.block} rows, torch on this CPU reads {here}"
        return None

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]."""
        import torch

        assert isinstance(layout, TorchInt4Pack)
        codes, scales = w
        rows = x.reshape(-1, shape[1]).contiguous()
        y = torch._weight_int4pack_mm_for_cpu(rows, codes, layout.group, scales.to(x.dtype))
        y = y.view(*x.shape[:-1], shape[0])
        return y if bias is None else (y + bias).to(x.dtype)


class Int4PackLinearDx(Kernel):
    """The backward of Int4PackLinear to x: a tile of rows is widened to float32, multiplied, next tile."""

    name, op, family, device, priority = "torch.int4pack_dx", "linear_dx", "torch_int4pack", "cpu", -10
    # torch splits sums by the number of threads, so bits depend on it
    numerics = Numerics(accumulate="f32", activations="exact", deterministic=False)

    def why_not(self, problem: Problem) -> str | None:
        """None for float gradients; reads the packing of any machine."""
        known = problem.dtype in ("f32", "bf16", "f16")
        return None if known else f"gradients are f32, f16 or bf16, not {problem.dtype}"

    def linear_dx(self, dy: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape) -> Tensor:
        """dy [*, N] → dx [*, K]."""
        assert isinstance(layout, TorchInt4Pack)
        n, k = shape
        weight = QuantizedTensor(layout, shape, dict(zip(layout.buffers(shape), w, strict=True)))
        rows = max(_TILE_BYTES // (4 * k * layout.block), 1) * layout.block
        wide = dy.float()
        dx = wide.new_zeros((*dy.shape[:-1], k))
        for start in range(0, n, rows):
            tile = weight.narrow(-2, start, min(rows, n - start)).dequantize()
            dx += wide.narrow(-1, start, len(tile)) @ tile
        return dx.to(dy.dtype)


def _unpacked(layout: TorchInt4Pack, buffers: Mapping[str, Tensor], shape: Shape) -> QuantizedTensor:
    import torch

    n, k = shape
    nibbles = torch.stack([buffers["codes"] & 15, buffers["codes"] >> 4], -1).flatten()
    full = n - n % layout.block
    blocks = nibbles[: full * k].view(-1, k, layout.block // 2, 2)  # [blocks, K, row mod half, half]
    rest = nibbles[full * k :].view(k, n - full)
    codes = torch.cat([blocks.permute(0, 3, 2, 1).reshape(full, k), rest.T])
    scales = buffers["scales_and_zeros"][..., 0].T.contiguous()
    source = GroupedAffine(4, layout.group, "in", "mid", layout.scale)  # type: ignore[arg-type]
    return QuantizedTensor(source, shape, {"codes": pack_codes(codes, 4), "scales": scales})


CONVERSIONS: tuple[Conversion, ...] = (PackInt4(), UnpackInt4())
KERNELS: tuple[Kernel, ...] = (Int4PackLinear(), Int4PackLinearDx())

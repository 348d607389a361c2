"""Integer codes with a scale and a zero per group: GPTQ, AWQ, HQQ, AFQ/MLX, plain int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from quantry.errors import ShapeError, UsageError
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.bitpack import codes_per_unit, packed_bytes, unpack
from quantry.layouts.grid import ceil_div, check_choice, matrix_why_not, split_axis

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Axis", "GroupedAffine", "ScaleType", "Zero"]

Axis = Literal["in", "out"]
Zero = Literal["none", "mid", "int", "float", "bias"]
ScaleType = Literal["f16", "bf16", "f32"]


@dataclass(frozen=True, slots=True)
class GroupedAffine(Layout):
    """Codes of `bits` bits; each group of `group` codes has one scale s and one zero z or bias b.

    Zero kinds, each operation rounded to float32 in this order:
    ```
    none    s * q               q two's complement of `bits` bits
    mid     s * (q - 2^(bits-1))
    int     s * (q - z)         z uint8, any value 0…255 (GPTQ v1 zeros reach 2^bits)
    float   s * (q - z)         z in the scale's dtype
    bias    (s * q) + b         b in the scale's dtype
    ```
    axis "in": a group is `group` neighbours of a row, 0 the whole row. The last group of a row may be short
    (GPTQ's G = ceil(K/group)).
    ```
    codes   uint8 [*, N, ceil(K*bits/8)]    a bit stream per row (bitpack.py)
    scales        [*, N, ceil(K/group)]     zeros (int, float) or biases (bias) likewise
    perm    int32 [*, K]                    a permutation: stored column j is column perm[j] of the weight,
                                            it multiplies x[perm[j]]
    ```
    axis "out" (HQQ axis 0): a group is a column of W.view(group, C), C = N*K/group: elements C apart in the
    row-major weight, so it spans rows. group 0 is N. N*K must be a multiple of the group.
    ```
    codes   uint8 [*, C, ceil(group*bits/8)]    column c of that view, from the top
    scales        [*, C]                        zeros or biases likewise
    ```
    Leading dimensions (experts) stand before every buffer. Sources: AutoGPTQ, AutoAWQ, hqq, mlx.

    >>> str(GroupedAffine(4, 128, "in", "int", "f16", perm=True))
    'affine:b4,g128,in,int,f16,perm'
    """

    family: ClassVar[str] = "affine"
    BITS: ClassVar[range] = range(1, 9)
    AXES: ClassVar[tuple[Axis, ...]] = get_args(Axis)
    ZEROS: ClassVar[tuple[Zero, ...]] = get_args(Zero)
    SCALES: ClassVar[tuple[ScaleType, ...]] = get_args(ScaleType)

    bits: int = field(metadata={"prefix": "b"})
    group: int = field(metadata={"prefix": "g"})
    axis: Axis
    zero: Zero
    scale: ScaleType
    perm: bool = False

    def __post_init__(self) -> None:
        if self.bits not in self.BITS:
            raise UsageError(f"GroupedAffine: codes have 1 to 8 bits, not {self.bits}")
        if self.group < 0:
            raise UsageError(f"GroupedAffine: group {self.group} is negative", hint="0 is the whole axis.")
        check_choice("GroupedAffine", "axis", self.axis, self.AXES)
        check_choice("GroupedAffine", "zero", self.zero, self.ZEROS)
        check_choice("GroupedAffine", "scale", self.scale, self.SCALES)
        if self.perm and self.axis == "out":
            raise UsageError(
                'GroupedAffine: perm sorts the columns of a row into groups; axis "out" has none'
            )

    def why_not(self, shape: Shape) -> str | None:
        """Refuses what is not a matrix and, for axis "out", N*K that is not a multiple of the group."""
        reason = matrix_why_not(shape)
        if reason is None and self.axis == "out":
            n, k = shape[-2:]
            if (n * k) % self._group(n, k):
                reason = f"{n}*{k} weights do not divide into groups of {self.group} across rows"
        return reason

    def buffers(self, shape: Shape) -> dict[str, BufferSpec]:
        """`codes`, `scales`, then `zeros` or `biases`, then `perm`, as the class needs them."""
        *lead, n, k = shape
        group = self._group(n, k)
        if self.axis == "in":
            codes = (*lead, n, packed_bytes(k, self.bits))
            groups = (*lead, n, self._row_groups(k))
        else:
            codes = (*lead, n * k // group, packed_bytes(group, self.bits))
            groups = (*lead, n * k // group)
        specs = {"codes": BufferSpec("u8", codes), "scales": BufferSpec(self.scale, groups)}
        if self.zero in ("int", "float"):
            specs["zeros"] = BufferSpec("u8" if self.zero == "int" else self.scale, groups)
        elif self.zero == "bias":
            specs["biases"] = BufferSpec(self.scale, groups)
        if self.perm:
            specs["perm"] = BufferSpec("i32", (*lead, k))
        return specs

    def dequantize(self, buffers: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Float32 [*shape], columns in the weight's own order."""
        import torch

        n, k = shape[-2:]
        group = self._group(n, k)
        if self.axis == "in":
            q = split_axis(unpack(buffers["codes"], self.bits, k), -1, group)  # [*, N, G, group]
        else:
            q = unpack(buffers["codes"], self.bits, group)  # [*, C, group]
        values = self._values(q, buffers)
        if self.axis == "out":
            return values.transpose(-1, -2).reshape(shape)
        dense = values.flatten(-2)[..., :k]  # [*, N, K], dropping the filling of a short last group
        if self.perm:
            place = buffers["perm"].argsort(dim=-1).unsqueeze(-2)  # the stored column of each weight column
            return torch.take_along_dim(dense, place, dim=-1)
        return dense.contiguous()

    def step(self, dim: int) -> int | None:
        """Out-features 1; in-features whole groups that end on a byte, any column for axis "out"."""
        if self._slice_refusal(dim) is not None:
            return None
        if dim == -2 or self.axis == "out":
            return 1
        return lcm(self.group or 1, codes_per_unit(self.bits))

    def narrow(
        self, buffers: Mapping[str, Tensor], shape: Shape, dim: int, start: int, length: int
    ) -> dict[str, Tensor]:
        """Views of the slice. Columns with axis "out" need N to be a multiple of the group (ShapeError)."""
        reason = self._slice_refusal(dim)
        if reason is not None:
            raise ShapeError(f"{self} cannot be sliced along dimension {dim}: {reason}")
        if self.axis == "out":
            return self._narrow_columns(buffers, shape, start, length)
        if dim == -2:
            return {name: b if name == "perm" else b.narrow(-2, start, length) for name, b in buffers.items()}
        first, last = start * self.bits // 8, packed_bytes(start + length, self.bits)
        parts = {"codes": buffers["codes"].narrow(-1, first, last - first)}
        for name in buffers.keys() - {"codes"}:
            parts[name] = buffers[name]
            if self.group:
                first, last = start // self.group, ceil_div(start + length, self.group)
                parts[name] = parts[name].narrow(-1, first, last - first)
        return parts

    def _narrow_columns(
        self, buffers: Mapping[str, Tensor], shape: Shape, start: int, length: int
    ) -> dict[str, Tensor]:
        n, k = shape[-2:]
        if n % self._group(n, k):
            raise ShapeError(
                f"{self} cannot slice the columns of shape {list(shape)}:"
                f" {n} rows are not a multiple of the group, so a group mixes columns"
            )
        # column c of W.view(group, C) is (row c // K, column c % K) of the first N/group rows
        parts = {}
        for name, b in buffers.items():
            dim = len(shape) - 2 - b.ndim  # of C, negative
            by_row = split_axis(b, dim, k or 1).narrow(dim, start, length)
            parts[name] = by_row.flatten(dim - 1, dim)
        return parts

    def _values(self, q: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """Codes uint8 [*, groups, group] as float32 numbers; `q` may be overwritten."""
        import torch

        half = 1 << (self.bits - 1)
        if self.zero == "none":
            q.bitwise_xor_(half)  # two's complement q is (q ^ half) - half
        values = q.to(torch.float32)
        if self.zero in ("none", "mid"):
            values -= half
        elif self.zero != "bias":
            values -= buffers["zeros"].to(torch.float32).unsqueeze(-1)
        values *= buffers["scales"].to(torch.float32).unsqueeze(-1)
        if self.zero == "bias":
            values += buffers["biases"].to(torch.float32).unsqueeze(-1)
        return values

    def _slice_refusal(self, dim: int) -> str | None:
        if self.axis == "out" and dim == -2:
            return "each group spans rows of the whole matrix"
        if self.perm and dim == -1:
            return "perm spreads neighbouring columns over all groups"
        return None

    def _group(self, n: int, k: int) -> int:
        """The group size with 0 resolved, never 0."""
        if self.axis == "out":
            return self.group or max(n, 1)
        return min(self.group or k, k) or 1

    def _row_groups(self, k: int) -> int:
        return ceil_div(k, self.group) if self.group else 1

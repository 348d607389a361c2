"""torch's own products of 8-bit weights with one scale per row on CPUs: codes are read where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantry import GroupedAffine, Kernel, Layout, Numerics, Problem, Shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KERNELS", "Int8MmLinear", "Int8PackLinear"]

_MAX_K = (1 << 31) // (127 * 128)  # more products of int8 than this overflow an int32 sum
_STEP_K = 32  # torch 2.13 reads past the end of other rows (int8pack, bf16); _int_mm is wrong for one column


class Int8PackLinear(Kernel):
    """`torch._weight_int8pack_mm`: codes widened to float32, activations as given, float32 sums.

    torch has vector code for bf16 activations only; with others it takes some thirty times as long.
    """

    name, op, family, device, priority = "torch.int8pack", "linear", "affine", "cpu", -10
    numerics = Numerics(accumulate="f32", activations="exact", deterministic=True)

    def why_not(self, problem: Problem) -> str | None:
        """Scales must be those of the activations' type, or widen to it."""
        reason = _rows_of_int8(problem)
        assert isinstance(problem.layout, GroupedAffine)
        scale = problem.layout.scale
        if reason is None and problem.dtype not in ("f32", scale):
            reason = f"scales are {scale}: activations are f32 or the same, not {problem.dtype}"
        return reason

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]."""
        import torch

        codes, scales = w
        rows = x.reshape(-1, shape[1]).contiguous()
        y = torch._weight_int8pack_mm(rows, codes.view(torch.int8), scales.view(-1).to(x.dtype))
        y = y.view(*x.shape[:-1], shape[0])
        return y if bias is None else (y + bias).to(x.dtype)


class Int8MmLinear(Kernel):
    """`torch._int_mm`: activations rounded to int8 with one scale per row of x, integer sums."""

    name, op, family, device, priority = "torch.int_mm", "linear", "affine", "cpu", 5
    numerics = Numerics(accumulate="i32", activations="int8", deterministic=True)

    def why_not(self, problem: Problem) -> str | None:
        """None for int8 rows and float activations."""
        if problem.dtype not in ("f32", "bf16", "f16"):
            return f"activations and results are f32, f16 or bf16, not {problem.dtype}"
        return _rows_of_int8(problem)

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: Shape, bias: Tensor | None
    ) -> Tensor:
        """x [*, K] → [*, N]; a NaN or Inf makes its own row NaN."""
        import torch

        codes, scales = w
        rows = x.reshape(-1, shape[1]).float()
        tiny = torch.finfo(torch.float32).tiny
        steps = rows.abs().amax(-1, keepdim=True).clamp_min(tiny) / 127 if len(rows) else rows[:, :1]
        rounded = (rows / steps).round_().nan_to_num_(0).to(torch.int8)
        y = torch._int_mm(rounded, codes.view(torch.int8).T) * (steps * scales.view(1, -1).float())
        y = y.view(*x.shape[:-1], shape[0])
        return (y if bias is None else y + bias.float()).to(x.dtype)


def _rows_of_int8(problem: Problem) -> str | None:
    layout = problem.layout
    assert isinstance(layout, GroupedAffine)
    if len(problem.shape) != 2:
        return f"one matrix at a time, got shape {list(problem.shape)}"
    n, k = problem.shape
    if k % _STEP_K or not 0 < k <= _MAX_K or not n:
        return f"takes rows of up to {_MAX_K} columns, a multiple of {_STEP_K}, got {n}x{k}"
    whole = layout.axis == "in" and layout.group in (0, k)
    if layout.bits != 8 or layout.zero != "none" or layout.perm or not whole:
        return f"needs signed 8-bit codes in order with one scale per row, got {layout}"
    return None


KERNELS: tuple[Kernel, ...] = (Int8PackLinear(), Int8MmLinear())

"""A whole Quantry plugin in one file: a kernel for 2-bit affine weights and one row of activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from quantry import GroupedAffine, Kernel, Layout, Numerics, Problem, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_TILE_ROWS = 256  # codes of so many output features are spread to float32 at a time


class TwoBitGemv(Kernel):
    """`y = Σ_g s_g (Σ_k q_k x_k - 2 Σ_k x_k)`: codes are summed per group and scaled once."""

    name, version, op, family, device = "template.gemv", 1, "linear", "affine", "cpu"
    priority = -10  # an example gives way to every other kernel
    # einsum splits its sums by threads
    numerics = Numerics(accumulate="f32", activations="exact", deterministic=False)

    def why_not(self, problem: Problem) -> str | None:
        """Takes 2-bit mid-zero codes in whole groups along the row, one row of x."""
        layout = problem.layout
        if not isinstance(layout, GroupedAffine) or layout.bits != 2 or layout.zero != "mid":
            return f"2-bit mid-zero only, got {layout}"
        if layout.axis != "in" or layout.perm:
            return "groups run along rows in their own order only"
        if len(problem.shape) != 2:
            return "one matrix only, not a stack"
        group = layout.group or problem.shape[1]
        if group % 4 or problem.shape[1] % group:
            return f"{problem.shape[1]} columns are not whole groups of {group}, four codes to a byte"
        if problem.dtype not in ("f32", "f16", "bf16"):
            return f"activations of {problem.dtype} are not supported"
        return "one row only" if problem.rows > 1 else None

    def matmul(
        self, x: Tensor, w: Sequence[Tensor], layout: Layout, shape: tuple[int, ...], bias: Tensor | None
    ) -> Tensor:
        """x [*, K], codes [N, K/4] with code 4i+j in bits 2j of byte i, scales [N, G] → [*, N]."""
        import torch

        codes, scales = w
        (n, k), groups = shape, scales.shape[1]
        lanes = x.float().reshape(-1, groups, k // groups // 4, 4)  # [M, G, bytes, 4]
        middle = 2 * lanes.sum((2, 3))  # [M, G]
        y = lanes.new_empty((lanes.shape[0], n))
        for start in range(0, n, _TILE_ROWS):
            tile = codes[start : start + _TILE_ROWS].view(-1, groups, k // groups // 4)
            sums = -middle.unsqueeze(1)  # [M, rows, G]
            for j in range(4):
                sums = sums + torch.einsum("mgb,ngb->mng", lanes[..., j], ((tile >> 2 * j) & 3).float())
            y[:, start : start + _TILE_ROWS] = (sums * scales[start : start + _TILE_ROWS].float()).sum(-1)
        if bias is not None:
            y += bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], n)


@hookimpl
def quantry_kernels() -> Iterable[Kernel]:
    """What this plugin gives."""
    return [TwoBitGemv()]

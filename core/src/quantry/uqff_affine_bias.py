"""Affine weights with a zero point as affine weights with a bias, the form that UQFF stores (tag 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantry.convert import Conversion
from quantry.layout import Layout, Shape
from quantry.layouts.affine import GroupedAffine
from quantry.layouts.bitpack import pack, unpack
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AffineBias"]

_GROUPS = (128, 64, 32)  # of UQFF tag 4


class AffineBias(Conversion):
    """s·(q - z) as s·q + b with b = -s·z, in float32 scales; groups become 32, 64 or 128.

    Exact for float16 and bfloat16 scales: s has at most 11 significant bits, q and z have 8, so s·q, s·z and
    s·(q - z) have 19 and are float32 numbers; their difference is then one too. (A bfloat16 scale above 2^119
    overflows; `uqff_portable` compares the numbers.) Zero points need float32: s·z does not fit the scale's
    own type. Not among the resolver's conversions: it adds up to 1.5 bits a weight and no kernel needs it.
    """

    source = target = "affine"

    def target_for(self, layout: Layout, shape: Shape) -> Layout | None:
        """For groups along a row and zeros "int", "mid" or "none"; None for float32 scales."""
        if not isinstance(layout, GroupedAffine) or layout.axis != "in" or layout.perm:
            return None
        if layout.zero not in ("int", "mid", "none") or layout.scale == "f32":
            return None
        columns = shape[-1]
        own = layout.group or columns
        group = next((g for g in _GROUPS if columns and columns % g == 0 and own % g == 0), None)
        return None if group is None else GroupedAffine(layout.bits, group, "in", "bias", "f32")

    def convert(self, qt: QuantizedTensor, target: Layout) -> QuantizedTensor:
        """Codes as they are, but for two's complement ones."""
        import torch

        assert isinstance(qt.layout, GroupedAffine)
        assert isinstance(target, GroupedAffine)
        columns, half = qt.shape[-1], 1 << (qt.layout.bits - 1)
        codes, scales = qt.buffers["codes"], qt.buffers["scales"].to(torch.float32)
        if qt.layout.zero == "none":
            codes = pack(unpack(codes, qt.layout.bits, columns).bitwise_xor_(half), qt.layout.bits)
        zeros = qt.buffers["zeros"].to(torch.float32) if qt.layout.zero == "int" else float(half)
        repeat, groups = (qt.layout.group or columns) // target.group, columns // target.group

        def regrouped(values: Tensor) -> Tensor:
            return values.repeat_interleave(repeat, -1)[..., :groups].contiguous()

        biases = -(scales * zeros)
        return QuantizedTensor(
            target,
            qt.shape,
            {"codes": codes.contiguous(), "scales": regrouped(scales), "biases": regrouped(biases)},
        )

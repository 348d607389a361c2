"""What ISQ checks of each weight: that it holds numbers, that they survive, that importance fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry.errors import UsageError, ValueDomainError
from quantry.layout import Layout, Shape
from quantry.quantizer import Quantizer
from quantry.tensor import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_finite", "importance_of", "packed", "replace_nan"]

_LARGE = 1e4  # below, no published type overflows; real weights stay far below
_LOST, _COARSE = 0.5, 0.3  # share of the largest weight that types of less error than this do keep


def check_finite(weight: Tensor, first_row: int = 0, name: str | None = None) -> None:
    """Raise ValueDomainError naming the first NaN or Inf; rows count from `first_row`."""
    import torch

    if weight.device.type == "meta" or is_finite(weight):
        return
    flat = weight.reshape(-1, weight.shape[-1])
    row, column = (~torch.isfinite(flat)).nonzero()[0].tolist()
    raise ValueDomainError(
        f"holds {flat[row, column].item()} at row {first_row + row}, column {column}",
        tensor=name,
        hint="The source is damaged, or overflowed in its own type; fetch or export it again.",
    )


def packed(
    quantizer: Quantizer,
    weight: Tensor,
    layout: Layout,
    stats: Tensor | None = None,
    first_row: int = 0,
    name: str | None = None,
) -> QuantizedTensor:
    """What the quantizer makes of a weight of a model.

    Raises ValueDomainError as `check_finite` does, and for weights so large that their scale overflows:
    llama.cpp and others write a NaN, Inf or zeros in their place.
    """
    weight = weight.detach()
    low, high = extremes(weight)
    if not (math.isfinite(low) and math.isfinite(high)):
        check_finite(weight, first_row, name)
    qt = quantizer.quantize(weight, layout, stats)
    if max(-low, high) > _LARGE:
        _check_kept(qt, weight, quantizer, first_row, name)
    return qt


def importance_of(
    stats: Mapping[str, Tensor], quantizer: Quantizer, name: str, shape: Shape
) -> Tensor | None:
    """The importance of a weight, [K] or [experts, K], by its name or that without `.weight`; None without.

    Files that do not say how a stack is divided give [experts · K].
    Raises UsageError for one of another shape, and for a quantizer that needs more than importance.
    """
    if quantizer.needs in ("hessian", "inputs"):
        raise UsageError(
            f"{quantizer.name} needs {quantizer.needs} from calibration; ISQ has none", tensor=name
        )
    found = stats.get(name, stats.get(name.removesuffix(".weight")))
    if found is not None and len(shape) == 3 and tuple(found.shape) == (shape[0] * shape[-1],):
        found = found.view(shape[0], shape[-1])
    fitting = [shape[-1:]] if len(shape) < 3 else [shape[-1:], (shape[0], shape[-1])]
    if found is not None and tuple(found.shape) not in fitting:
        raise UsageError(f"importance has shape {list(found.shape)}, the weight {list(shape)}", tensor=name)
    return found


def replace_nan(weight: Tensor) -> tuple[Tensor, int]:
    """The weight with 0 for NaN and Inf, and how many there were; the tensor itself where there are none."""
    import torch

    if is_finite(weight):
        return weight, 0
    finite = torch.isfinite(weight)
    return torch.where(finite, weight, 0), int((~finite).sum())


def extremes(weight: Tensor) -> tuple[float, float]:
    """Least and largest value, NaN where there is one: the fastest pass over a tensor that tells."""
    import torch

    if weight.device.type == "meta" or not weight.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(weight)
    return float(low), float(high)


def is_finite(weight: Tensor) -> bool:
    """Whether there is no NaN and no Inf."""
    return all(math.isfinite(value) for value in extremes(weight))


def _check_kept(
    qt: QuantizedTensor, weight: Tensor, quantizer: Quantizer, first_row: int, name: str | None
) -> None:
    """Raise ValueDomainError naming the weight that is no number any more, or the largest if it is lost."""
    import torch

    columns = weight.shape[-1]
    wide, made = weight.float().reshape(-1, columns), qt.dequantize().reshape(-1, columns)
    wrong = ~torch.isfinite(made)
    if wrong.any():  # the largest of them is what overflowed
        at = int(torch.where(wrong, wide.abs(), -1).argmax())
    else:
        if quantizer.expected_error is not None and quantizer.expected_error > _COARSE:
            return  # such a type keeps no outlier
        at = int(wide.abs().argmax())
        value = float(wide.view(-1)[at])
        if abs(float(made.reshape(-1)[at]) - value) <= _LOST * abs(value):
            return
    row, column = divmod(at, columns)
    what, where = f"{float(wide[row, column]):g}", f"row {first_row + row}, column {column}"
    raise ValueDomainError(
        f"holds {what} at {where}, too large for {quantizer.name}",
        tensor=name,
        hint="Look at the weight; a type with float32 or bfloat16 scales may hold it (afq4, q8_k, bf16).",
    )

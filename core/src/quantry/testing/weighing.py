"""What tests of importance share: weights and importance to try, and facts that every encoder owes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantry.native import NativeLibrary
from quantry.tensor import QuantizedTensor
from quantry.testing.running import on_target, on_threads

__all__ = [
    "check_stack_weighs_alone",
    "check_targets_weigh_alike",
    "check_threads_weigh_alike",
    "normal_weight",
    "same_bytes",
    "uneven_importance",
]

Encode = Callable[[Tensor, "Tensor | None"], QuantizedTensor]
"""A weight and its importance to what a quantizer makes of them."""


def normal_weight(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven_importance(columns: int, seed: int = 1) -> Tensor:
    """Importance over four decades."""
    return normal_weight(columns, seed=seed).mul(2).exp()


def same_bytes(one: QuantizedTensor, two: QuantizedTensor) -> bool:
    """Whether every buffer of `one` equals that of `two`."""
    return all(torch.equal(buffer, two.buffers[name]) for name, buffer in one.buffers.items())


def check_stack_weighs_alone(encode: Encode) -> None:
    """Each matrix of a stack is packed by its own importance."""
    weight = normal_weight(3, 5, 128)
    importance = torch.stack([uneven_importance(128, seed) for seed in range(3)])
    whole = encode(weight, importance)
    for i in range(3):
        for name, buffer in encode(weight[i], importance[i]).buffers.items():
            assert torch.equal(whole.buffers[name][i], buffer), f"matrix {i} of a stack has other {name}"


def check_threads_weigh_alike(
    encode: Encode, weight: Tensor, importance: Tensor | None, threads: Sequence[int]
) -> None:
    """The number of threads changes no byte."""
    found = []
    for count in threads:
        with on_threads(count):
            found.append(encode(weight, importance))
    for count, other in zip(threads[1:], found[1:], strict=True):
        assert same_bytes(found[0], other), f"{count} threads make other bytes than {threads[0]}"


def check_targets_weigh_alike(
    library: NativeLibrary, encode: Encode, weight: Tensor, importance: Tensor
) -> None:
    """The instruction set changes no byte, and nothing that is not finite is made."""
    expected = encode(weight, importance)
    assert expected.dequantize().isfinite().all()
    for target in library.targets():
        with on_target(library, target):
            assert same_bytes(encode(weight, importance), expected), f"{target} makes other bytes"

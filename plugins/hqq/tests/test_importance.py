"""With importance, scales and zeros are near the least weighted error, and the same on every target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantry import QuantizedTensor
from quantry.testing import CORNERS, corner_weight, on_target, on_threads
from quantry.testing.optimum import affine_optimum, weighted_error
from quantry_hqq.encode import QUANTIZERS
from quantry_hqq.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
ACROSS = ("hqq4", "hqq8")
GROUP = 64


def encode(name: str, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
    q = BY_NAME[name]
    return q.quantize(weight, q.layout_for(tuple(weight.shape), "f32"), importance)


def same(one: QuantizedTensor, two: QuantizedTensor) -> bool:
    return all(torch.equal(b, two.buffers[name]) for name, b in one.buffers.items())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven(columns: int, seed: int = 1) -> Tensor:
    """Importance over four decades."""
    return normal(columns, seed=seed).mul(2).exp()


def grouped(name: str, values: Tensor) -> Tensor:
    """[groups, 64] of a matrix [N, K], as a type groups it."""
    return values.reshape(GROUP, -1).T if name in ACROSS else values.reshape(-1, GROUP)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("hqq4", (24, 80)), ("hqq4", (16, 124)), *((f"hqq{b}_axis1", (8, 256)) for b in (1, 2, 3, 4))],
)
def test_the_weighted_error_is_near_the_least_there_is(name: str, shape: tuple[int, int]) -> None:
    """Across rows each weight of a group has the importance of its own column."""
    weight, importance = normal(*shape), uneven(shape[1])
    plain, found = (
        weighted_error(weight, encode(name, weight, i).dequantize(), importance) for i in (None, importance)
    )
    groups, by = grouped(name, weight), grouped(name, importance.expand(shape))
    least = affine_optimum(groups, by, BY_NAME[name].layout_for(shape, "f32").bits).sum()
    assert found - least <= 0.15 * (plain - least)  # of what there is to gain, 85 % is had


@pytest.mark.parametrize("name", BY_NAME)
def test_every_target_weighs_alike(name: str) -> None:
    weight = torch.cat([corner_weight(kind)[::9] for kind in CORNERS if kind != "huge"])[:64, :192]
    importance = uneven(192)
    importance[70:100] = 0
    expected = encode(name, weight, importance)
    assert expected.dequantize().isfinite().all()
    for target in LIBRARY.targets():
        with on_target(LIBRARY, target):
            assert same(encode(name, weight, importance), expected), target


@pytest.mark.parametrize("name", BY_NAME)
def test_thread_count_does_not_matter(name: str) -> None:
    weight, importance = normal(150, 576), uneven(576)
    expected = encode(name, weight, importance)
    for threads in (1, 3, 16):
        with on_threads(threads):
            assert same(encode(name, weight, importance), expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_groups_that_no_activation_reaches_are_as_without_importance(name: str) -> None:
    weight, importance = normal(64, 256), uneven(256)  # across rows, a group is a column of this shape
    importance[64:128] = 0
    plain, weighed = (grouped(name, encode(name, weight, i).dequantize()) for i in (None, importance))
    unreached = grouped(name, importance.expand(64, 256)).sum(-1) == 0
    assert unreached.any()
    assert torch.equal(weighed[unreached], plain[unreached])
    assert same(encode(name, weight, torch.zeros(256)), encode(name, weight))


@pytest.mark.parametrize("name", BY_NAME)
def test_each_matrix_of_a_stack_has_its_importance(name: str) -> None:
    weight, importance = normal(3, 5, 128), torch.stack([uneven(128, seed) for seed in range(3)])
    whole = encode(name, weight, importance)
    for i in range(3):
        one = encode(name, weight[i], importance[i])
        assert all(torch.equal(whole.buffers[n][i], b) for n, b in one.buffers.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BY_NAME)
def test_half_weights_are_widened(name: str, dtype: torch.dtype) -> None:
    weight, importance = normal(7, 64).to(dtype), uneven(64)
    assert same(encode(name, weight, importance), encode(name, weight.float(), importance))

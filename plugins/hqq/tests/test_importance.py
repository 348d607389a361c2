"""With importance, scales and zeros are near the least weighted error, and the same on every target."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from quantry import QuantizedTensor
from quantry.testing import (
    CORNERS,
    check_stack_weighs_alone,
    check_targets_weigh_alike,
    check_threads_weigh_alike,
    corner_weight,
    normal_weight,
    same_bytes,
    uneven_importance,
)
from quantry.testing.optimum import affine_optimum, weighted_error
from quantry_hqq.encode import QUANTIZERS
from quantry_hqq.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
ACROSS = ("hqq4", "hqq8")
GROUP = 64


def encode(name: str, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
    q = BY_NAME[name]
    return q.quantize(weight, q.layout_for(tuple(weight.shape), "f32"), importance)


def grouped(name: str, values: Tensor) -> Tensor:
    """[groups, 64] of a matrix [N, K], as a type groups it."""
    return values.reshape(GROUP, -1).T if name in ACROSS else values.reshape(-1, GROUP)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("hqq4", (24, 80)), ("hqq4", (16, 124)), *((f"hqq{b}_axis1", (8, 256)) for b in (1, 2, 3, 4))],
)
def test_the_weighted_error_is_near_the_least_there_is(name: str, shape: tuple[int, int]) -> None:
    """Across rows each weight of a group has the importance of its own column."""
    weight, importance = normal_weight(*shape), uneven_importance(shape[1])
    plain, found = (
        weighted_error(weight, encode(name, weight, i).dequantize(), importance) for i in (None, importance)
    )
    groups, by = grouped(name, weight), grouped(name, importance.expand(shape))
    least = affine_optimum(groups, by, BY_NAME[name].layout_for(shape, "f32").bits).sum()
    assert found - least <= 0.15 * (plain - least)  # of what there is to gain, 85 % is had


@pytest.mark.parametrize("name", BY_NAME)
def test_every_target_weighs_alike(name: str) -> None:
    weight = torch.cat([corner_weight(kind)[::9] for kind in CORNERS if kind != "huge"])[:64, :192]
    importance = uneven_importance(192)
    importance[70:100] = 0
    check_targets_weigh_alike(LIBRARY, partial(encode, name), weight, importance)


@pytest.mark.parametrize("name", BY_NAME)
def test_thread_count_does_not_matter(name: str) -> None:
    threads = (torch.get_num_threads(), 1, 3, 16)
    check_threads_weigh_alike(partial(encode, name), normal_weight(150, 576), uneven_importance(576), threads)


@pytest.mark.parametrize("name", BY_NAME)
def test_groups_that_no_activation_reaches_are_as_without_importance(name: str) -> None:
    weight, importance = (
        normal_weight(64, 256),
        uneven_importance(256),
    )  # across rows, a group is a column of this shape
    importance[64:128] = 0
    plain, weighed = (grouped(name, encode(name, weight, i).dequantize()) for i in (None, importance))
    unreached = grouped(name, importance.expand(64, 256)).sum(-1) == 0
    assert unreached.any()
    assert torch.equal(weighed[unreached], plain[unreached])
    assert same_bytes(encode(name, weight, torch.zeros(256)), encode(name, weight))


@pytest.mark.parametrize("name", BY_NAME)
def test_each_matrix_of_a_stack_has_its_importance(name: str) -> None:
    check_stack_weighs_alone(partial(encode, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BY_NAME)
def test_half_weights_are_widened(name: str, dtype: torch.dtype) -> None:
    weight, importance = normal_weight(7, 64).to(dtype), uneven_importance(64)
    assert same_bytes(encode(name, weight, importance), encode(name, weight.float(), importance))

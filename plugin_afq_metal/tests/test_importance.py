"""With importance, scales and biases are near the least weighted error, and the same on every target."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from afq_weights import edge_rows, in_dtype
from torch import Tensor

from quantry import QuantizedTensor, Quantizer, dtype_name
from quantry.testing import (
    check_stack_weighs_alone,
    check_targets_weigh_alike,
    check_threads_weigh_alike,
    normal_weight,
    same_bytes,
    uneven_importance,
)
from quantry.testing.optimum import affine_optimum, weighted_error
from quantry_afq_metal.encode import QUANTIZERS
from quantry_afq_metal.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def by_name(q: Quantizer) -> str:
    return q.name


def encode(q: Quantizer, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
    return q.quantize(weight, q.layout_for(tuple(weight.shape), dtype_name(weight.dtype)), importance)


@pytest.mark.parametrize("name", ["afq2", "afq3", "afq4", "afq4_minmax"])
def test_the_weighted_error_is_near_the_least_there_is(name: str) -> None:
    weight, importance = normal_weight(8, 256), uneven_importance(256)
    plain, found = (
        weighted_error(weight, encode(BY_NAME[name], weight, i).dequantize(), importance)
        for i in (None, importance)
    )
    groups, by = weight.view(32, 64), importance.view(4, 64).repeat(8, 1)
    least = affine_optimum(groups, by, BY_NAME[name].layout_for((8, 256), "f32").bits).sum()
    assert found - least <= 0.1 * (plain - least)  # nine tenths of what there is to gain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_rounding_of_scales_is_part_of_the_error(q: Quantizer, dtype: torch.dtype) -> None:
    weight, importance = normal_weight(24, 256).add(0.3).to(dtype), uneven_importance(256)
    plain, found = (encode(q, weight, i).dequantize() for i in (None, importance))
    errors = [weighted_error(weight[:, None], made[:, None], importance) for made in (plain, found)]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.8 * errors[0].sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_every_target_weighs_alike(q: Quantizer, dtype: torch.dtype) -> None:
    weight, importance = in_dtype(edge_rows(192), dtype), uneven_importance(192)
    importance[70:100] = 0
    check_targets_weigh_alike(LIBRARY, partial(encode, q), weight, importance)


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_thread_count_does_not_matter(q: Quantizer) -> None:
    check_threads_weigh_alike(partial(encode, q), normal_weight(500, 320), uneven_importance(320), (1, 2, 7))


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_groups_that_no_activation_reaches_are_as_without_importance(q: Quantizer) -> None:
    weight, importance = normal_weight(9, 256).half(), uneven_importance(256)
    importance[64:128] = 0
    plain, weighed = (encode(q, weight, i).dequantize()[:, 64:128] for i in (None, importance))
    assert torch.equal(weighed, plain)
    assert same_bytes(encode(q, weight, torch.zeros(256)), encode(q, weight))


@pytest.mark.parametrize("q", QUANTIZERS, ids=by_name)
def test_each_matrix_of_a_stack_has_its_importance(q: Quantizer) -> None:
    check_stack_weighs_alone(partial(encode, q))

"""Quantizers write bitsandbytes' codes and scales; with importance, scales near an exhaustive search's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from make_bnb_golden import DTYPES, GOLDEN, TABLES, by_bitsandbytes, in_dtype, weights
from safetensors.torch import save_file
from torch import Tensor

import quantry
from quantry import GroupedCodebook, QuantizedTensor, ShapeError, ValueDomainError
from quantry.cli import cli
from quantry.layouts.tables import CODEBOOKS
from quantry.testing import (
    QuantizerSuite,
    check_stack_weighs_alone,
    check_targets_weigh_alike,
    check_threads_weigh_alike,
    normal_weight,
    on_target,
    same_bytes,
    tensor_digest,
    uneven_importance,
)
from quantry.testing.optimum import weighted_error
from quantry_bnb.encode import QUANTIZERS
from quantry_bnb.native import LIBRARY

BY_NAME = {q.name: q for q in QUANTIZERS}
WEIGHTS = weights()


def encode(name: str, weight: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
    return BY_NAME[name].quantize(weight, BY_NAME[name].layout, importance)


def as_theirs(qt: QuantizedTensor) -> dict[str, Tensor]:
    """Both parts as bitsandbytes has them: the even column in the high bits."""
    codes = qt.buffers["codes"].flatten()
    return {"codes": codes << 4 | codes >> 4, "scales": qt.buffers["scales"].flatten()}


@pytest.fixture(params=LIBRARY.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_target(LIBRARY, request.param):
        yield request.param


class BnbSuite(QuantizerSuite):
    shapes = ((17, 256), (1, 64), (600, 128), (2, 3, 192))


class TestNf4(BnbSuite):
    quantizer = BY_NAME["nf4"]


class TestFp4(BnbSuite):
    quantizer = BY_NAME["fp4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table", TABLES)
def test_codes_and_scales_are_those_of_bitsandbytes(target: str, table: str, dtype: str) -> None:
    golden = json.loads(GOLDEN.read_text())[table][dtype]
    assert golden.keys() == WEIGHTS.keys()
    for kind, weight in WEIGHTS.items():
        found = as_theirs(encode(table, in_dtype(weight, dtype)))
        assert {name: tensor_digest(part) for name, part in found.items()} == golden[kind], kind


@pytest.mark.peer
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table", TABLES)
def test_random_weights_become_what_bitsandbytes_makes_of_them(table: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    for seed in range(20):
        spread = 2.0 ** normal_weight(96, 1, seed=seed).mul(30).clamp(-140, 100)
        weight = in_dtype(normal_weight(96, 320, seed=seed + 1000) * spread, dtype)
        expected, found = by_bitsandbytes(weight, table), as_theirs(encode(table, weight))
        assert all(torch.equal(found[name], part) for name, part in expected.items()), seed


@pytest.mark.peer
@pytest.mark.parametrize("table", TABLES)
def test_bitsandbytes_reads_the_bytes(table: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = normal_weight(48, 256)
    _, state = functional.quantize_4bit(weight, blocksize=64, quant_type=table)
    for importance in (None, uneven_importance(256)):
        qt = encode(table, weight, importance)
        parts = as_theirs(qt)
        state.absmax = parts["scales"]
        theirs = functional.dequantize_4bit(parts["codes"].view(-1, 1), state)
        assert torch.equal(theirs, qt.dequantize())


@pytest.mark.parametrize("table", TABLES)
def test_a_weight_takes_the_nearest_number(table: str) -> None:
    weight = normal_weight(64, 256)
    qt = encode(table, weight)
    numbers = torch.tensor(CODEBOOKS[table], dtype=torch.float64)
    scale = weight.double().view(64, 4, 64).abs().amax(-1, keepdim=True)
    least = (weight.double().view(64, 4, 64, 1) - scale[..., None] * numbers).abs().amin(-1)
    off = (weight.double() - qt.dequantize().double()).abs().view(64, 4, 64)
    assert (off <= least + 2**-22 * scale).all()  # both products and the midpoint round once


@pytest.mark.parametrize("table", TABLES)
def test_weighted_scales_are_near_the_best_of_ten_thousand(table: str) -> None:
    """Float64 tries 10,000 scales from 0.2 to 1.4 of the largest magnitude."""
    weight, importance = normal_weight(8, 256), uneven_importance(256)
    found = weighted_error(weight, encode(table, weight, importance).dequantize(), importance)
    blocks, by = weight.double().view(32, 64), importance.double().view(4, 64).repeat(8, 1)
    numbers = torch.tensor(sorted(CODEBOOKS[table]), dtype=torch.float64)
    middle, largest = (numbers[1:] + numbers[:-1]) / 2, blocks.abs().amax(-1, keepdim=True)
    least = torch.full((32,), torch.inf, dtype=torch.float64)
    for share in torch.linspace(0.2, 1.4, 10_000, dtype=torch.float64):
        made = numbers[torch.bucketize(blocks / (share * largest), middle)] * share * largest
        least = torch.minimum(least, ((made - blocks).square() * by).sum(-1))
    plain = weighted_error(weight, encode(table, weight).dequantize(), importance)
    assert least.sum() <= found * (1 + 1e-6)
    assert found - least.sum() <= 0.1 * (plain - least.sum())  # nine tenths of what there is to gain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table", TABLES)
def test_every_target_weighs_alike(table: str, dtype: str) -> None:
    blocks = torch.cat([w.view(-1, 64)[::11] for w in WEIGHTS.values()])
    weight = in_dtype(blocks[: len(blocks) // 3 * 3].view(-1, 192), dtype)
    importance = uneven_importance(192)
    importance[70:100] = 0
    check_targets_weigh_alike(LIBRARY, partial(encode, table), weight, importance)


@pytest.mark.parametrize("table", TABLES)
def test_thread_count_does_not_matter(table: str) -> None:
    for importance in (None, uneven_importance(320)):
        check_threads_weigh_alike(partial(encode, table), normal_weight(900, 320), importance, (1, 2, 7))


@pytest.mark.parametrize("table", TABLES)
def test_blocks_that_no_activation_reaches_are_as_without_importance(table: str) -> None:
    weight, importance = normal_weight(9, 256), uneven_importance(256)
    importance[64:128] = 0
    plain, weighed = (encode(table, weight, i).dequantize()[:, 64:128] for i in (None, importance))
    assert torch.equal(weighed, plain)
    assert same_bytes(encode(table, weight, torch.zeros(256)), encode(table, weight))


@pytest.mark.parametrize("table", TABLES)
def test_each_matrix_of_a_stack_has_its_importance(table: str) -> None:
    check_stack_weighs_alone(partial(encode, table))


@pytest.mark.parametrize("name", BY_NAME)
def test_empty_weights_and_refusals(name: str) -> None:
    for shape in ((0, 64), (3, 0), (2, 0, 64), (0, 3, 64)):
        assert encode(name, torch.zeros(shape)).dequantize().shape == shape
    with pytest.raises(ShapeError, match=f"{name} needs columns that are a multiple of 64, got 96"):
        encode(name, torch.zeros(4, 96))
    weight = torch.zeros(5000, 64)
    weight[4000, 33] = torch.inf
    with pytest.raises(ValueDomainError, match="row 4000, column 33"):
        encode(name, weight)


@pytest.mark.parametrize("name", BY_NAME)
def test_isq_writes_them_to_uqff_though_it_has_no_tag(name: str, tmp_path: Path) -> None:
    key = "model.layers.0.mlp.up_proj.weight"
    weight = normal_weight(48, 256)
    save_file({key: weight}, tmp_path / "model.safetensors")
    arguments = ["quantize", str(tmp_path / "model.safetensors"), "--isq", name, "-o", str(tmp_path / "o")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert f"codebook:{name},g64,f32 (1)" in done.stderr
    (shard,) = (tmp_path / "o").rglob("*-0.uqff")
    again = quantry.open(shard)[key]
    assert again.layout == GroupedCodebook(name, 64, "f32")
    assert same_bytes(again, encode(name, weight))

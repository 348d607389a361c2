"""The type of each tensor against llama.cpp's own files: fixtures/mixes.json, made by make_mixes.py."""

from __future__ import annotations

import re

import pytest
from gguf_models import MODELS, in_order
from mix_cases import Case, cases, golden, short

from quantry import HeaderError, UsageError
from quantry_gguf.mixes import FILE_TYPES, file_type
from quantry_gguf.tensor_types import Chosen, Present, TypeOptions, choose_types, model_of, tensor_type

GIVEN = golden()


def options_of(case: Case) -> TypeOptions:
    asked = dict(case.arguments)
    overrides = tuple((re.compile(pattern), type) for pattern, type in asked.pop("overrides", ()))
    return TypeOptions(file_type(case.file), overrides=overrides, **asked)


def chosen(case: Case) -> dict[str, Chosen]:
    model = MODELS[case.model]
    present = [Present(name, shape, "f32") for name, shape in model.tensors.items()]
    return choose_types(present, model_of(model.config, model.tensors, case.importance), options_of(case))


@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_of_llama_cpp(name: str) -> None:
    found = {}
    for case in (case for case in cases() if case.model == name):
        try:
            types = chosen(case)
        except UsageError:
            found[case.key] = None
        else:
            found[case.key] = short({n: types[n].type.name for n in in_order(MODELS[name])})
    assert found == GIVEN[name]


def test_every_file_type_is_among_the_golden_ones() -> None:
    found = {key.split()[0] for given in GIVEN.values() for key in given}
    assert found == {t.name for t in FILE_TYPES}


def test_what_needs_importance_says_how_to_get_it() -> None:
    with pytest.raises(UsageError) as e:
        chosen(Case("llama of groups of 4", "IQ2_XXS", importance=False))
    assert e.value.tensor == "blk.0.attn_k.weight"
    assert e.value.problem == "would be iq2_xxs, which is useless without importance"
    assert "quantry imatrix" in (e.value.hint or "")


def test_a_fallback_says_why() -> None:
    types = chosen(Case("gemma3 of 640 columns, tied", "Q4_K_M", importance=False))
    name = "blk.0.ffn_gate.weight"
    assert types[name].type.name == "q5_0"
    assert types[name].fallback == "640 columns are not a multiple of q4_k's block of 256"
    assert types["blk.0.attn_norm.weight"].fallback is None


@pytest.mark.parametrize(
    ("file", "options", "tensor"),
    [("Q1_0", {}, "token_embd.weight"), ("Q4_K_M", {"embedding": "q6_k"}, "token_embd.weight")],
)
def test_a_type_that_no_smaller_block_stands_in_for_is_refused(
    file: str, options: dict[str, str], tensor: str
) -> None:
    model = MODELS["llama of 96 columns"]
    present = [Present(name, shape, "f32") for name, shape in model.tensors.items()]
    facts = model_of(model.config, model.tensors, importance=False)
    with pytest.raises(UsageError, match="96 columns are not a multiple of its block of") as e:
        choose_types(present, facts, TypeOptions(file_type(file), **options))
    assert e.value.tensor == tensor


@pytest.mark.parametrize(
    ("name", "full"), [("q4_k_m", "Q4_K_M"), ("Q4K", "Q4_K_M"), ("iq4-xs", "IQ4_XS"), ("Q3_K", "Q3_K_M")]
)
def test_file_types_are_spelled_freely(name: str, full: str) -> None:
    assert file_type(name).name == full


def test_an_unknown_type_proposes_the_nearest() -> None:
    with pytest.raises(UsageError) as e:
        file_type("Q4_K_X")
    assert e.value.hint == "Did you mean 'Q4_K_S'?"
    with pytest.raises(UsageError) as e:
        tensor_type("q8_k")
    assert e.value.hint is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": None}, "'general.architecture' is missing"),
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": "8"}, "'llama.block_count' is '8', not a number"),
    ],
)
def test_a_model_that_does_not_say_its_shape_is_refused(change: dict[str, object], words: str) -> None:
    model = MODELS["llama of groups of 4"]
    values = {k: v for k, v in (model.config | change).items() if v is not None}
    with pytest.raises(HeaderError, match=re.escape(words)):
        model_of(values, model.tensors, importance=False)


def test_heads_may_be_given_for_each_layer() -> None:
    model = MODELS["llama of groups of 4"]
    values = model.config | {"llama.attention.head_count": [8] * 8, "llama.attention.head_count_kv": [2] * 8}
    assert model_of(values, model.tensors, importance=False).group == 4

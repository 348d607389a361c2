"""Key-values: what types they get, and that a file has them as the gguf package reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import open_gguf

from quantry import DuplicateTensor, UsageError
from quantry_gguf.header import SCALARS, parse_header
from quantry_gguf.types import BY_NAME
from quantry_gguf.values import Value, typed, typed_values
from quantry_gguf.writer import NewTensor, plan_file

NAMES = {**{kind: scalar.name for kind, scalar in SCALARS.items()}, 8: "string", 9: "array"}


@pytest.mark.parametrize(
    ("value", "kind", "element"),
    [
        (True, "bool", None), (7, "u32", None), (-7, "i32", None), (2**32, "u64", None),
        (-(2**40), "i64", None), (0.5, "f32", None), ("x", "string", None), (b"\x01\xff", "array", "u8"),
        ([1, -2], "array", "i32"), ([2**31], "array", "u64"), ([-1, 2**31], "array", "i64"),
        ([0.5, 2], "array", "f32"), ([True, False], "array", "bool"), (["a", ""], "array", "string"),
        (np.uint32(3), "u32", None), (np.int32(3), "i32", None), (np.uint64(3), "u64", None),
        (np.uint16(3), "u16", None), (np.float64(3), "f64", None), (np.bool_(True), "bool", None),
        (np.array([1, 2], np.uint32), "array", "u32"), (np.array([1, 2], np.float32), "array", "f32"),
    ],
)  # fmt: skip
def test_a_value_gets_its_type_and_reads_as_itself(
    tmp_path: Path, value: Any, kind: str, element: str | None
) -> None:
    found = typed("k", value)
    assert NAMES[found.kind] == kind
    assert (None if found.element is None else NAMES[found.element]) == element
    path = tmp_path / "x.gguf"
    path.write_bytes(plan_file({"k": found}, []).head)
    plain = value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, bytes) else value
    assert gguf.GGUFReader(path).fields["k"].contents() == plain
    header = parse_header(memoryview(path.read_bytes()), path)
    assert Value(*header.kinds["k"], header.values["k"]) == Value(found.kind, found.element, plain)


@pytest.mark.parametrize(
    "value",
    [None, {"a": 1}, 2**64, -(2**63) - 1, ["a", 1], [True, 1], np.zeros((2, 2), np.float32), np.float16(1),
     object(), "\ud800", ["\ud800"], 1j],
)  # fmt: skip
def test_what_gguf_cannot_hold_is_refused_by_its_key(value: Any) -> None:
    with pytest.raises(UsageError, match="key 'k'"):
        plan_file({"k": typed("k", value)}, [])


def test_a_number_outside_of_its_type_is_refused_by_its_key() -> None:
    with pytest.raises(UsageError, match="key 'k': a value is no u8"):
        plan_file({"k": Value(0, None, 256)}, [])


def test_empty_lists_are_left_out() -> None:
    assert list(typed_values({"a": [], "b": "", "c": [0]})) == ["b", "c"]


def test_tensors_lie_where_the_package_reads_them(tmp_path: Path) -> None:
    tensors = [
        NewTensor("a", (3, 2, 64), BY_NAME["q4_0"]),
        NewTensor("b", (5,), BY_NAME["f32"]),
        NewTensor("c", (1, 1, 2, 256), BY_NAME["q4_k"]),
    ]
    plan = plan_file(typed_values({"general.architecture": "llama", "general.alignment": 64}), tensors)
    path = tmp_path / "x.gguf"
    path.write_bytes(plan.head + bytes(plan.size - len(plan.head)))
    theirs = {
        t.name: (tuple(reversed(t.shape.tolist())), t.data_offset) for t in gguf.GGUFReader(path).tensors
    }
    assert theirs == {t.name: (t.shape, plan.offsets[t.name]) for t in tensors}
    assert all(offset % 64 == 0 for offset in plan.offsets.values())
    assert plan.holes == plan.size - len(plan.head) - sum(t.nbytes for t in tensors)
    assert [e.name for e in open_gguf(path).entries()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([NewTensor("n" * 64, (2,), BY_NAME["f32"])], "at most 63 bytes"),
        ([NewTensor("", (2,), BY_NAME["f32"])], "no name"),
        ([NewTensor("a", (1,) * 5, BY_NAME["f32"])], "5 dimensions, GGUF allows 4"),
    ],
)
def test_tensors_that_gguf_cannot_hold_are_refused(tensors: list[NewTensor], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_file({}, tensors)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(DuplicateTensor):
        plan_file({}, [NewTensor("a", (2,), BY_NAME["f32"])] * 2)

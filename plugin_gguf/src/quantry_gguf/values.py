"""Key-values of a GGUF file with their types, and the bytes they take."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from quantry import UsageError
from quantry_gguf.arrays import NumberArray, StringArray
from quantry_gguf.header import ARRAY, SCALARS, STRING

__all__ = ["Value", "typed", "typed_values", "value_bytes"]

_ID = {scalar.name: kind for kind, scalar in SCALARS.items()}
_DTYPE = {  # how numpy and torch spell the value types
    "uint8": "u8", "int8": "i8", "uint16": "u16", "int16": "i16", "uint32": "u32", "int32": "i32",
    "uint64": "u64", "int64": "i64", "float32": "f32", "float64": "f64", "bool": "bool",
}  # fmt: skip
_RANGES = (  # first that holds an integer
    ("u32", 0, 2**32), ("i32", -(2**31), 0), ("u64", 0, 2**64), ("i64", -(2**63), 0),
)  # fmt: skip


class Value(NamedTuple):
    """`content` of the value type `kind`; arrays say the type of their elements."""

    kind: int
    element: int | None
    content: Any


def typed_values(values: Mapping[str, Any]) -> dict[str, Value]:
    """Every value with a type. Empty lists are left out: nothing says what they would hold."""
    return {key: typed(key, value) for key, value in values.items() if not _is_empty(value)}


def typed(key: str, value: Any) -> Value:
    """A value with its type: what a numpy type says, else bool, string, u32 (or i32, u64, i64), f32.

    Lists of integers are i32 where they fit. Raises UsageError naming the key for what GGUF cannot hold.
    """
    if isinstance(value, Value):
        return value
    if (dtype := getattr(value, "dtype", None)) is not None:
        return _of_dtype(key, str(dtype), value)
    if isinstance(value, str):
        return Value(STRING, None, value)
    if isinstance(value, (bytes, bytearray)):
        return Value(ARRAY, _ID["u8"], list(value))
    if isinstance(value, Sequence):
        return Value(ARRAY, _element(key, value), value)
    return Value(_ID[_scalar(key, value)], None, value)


def value_bytes(key: str, value: Value) -> bytes:
    """The type and the value as a file has them. Raises UsageError naming the key for what does not fit."""
    head = struct.pack("<I", value.kind)
    if value.kind == STRING:
        return head + _string(key, value.content)
    if value.kind != ARRAY:
        return head + _numbers(key, value.kind, [value.content])
    assert value.element is not None
    head += struct.pack("<IQ", value.element, len(value.content))
    if isinstance(value.content, (NumberArray, StringArray)):
        return head + value.content.encoded()
    if value.element != STRING:
        return head + _numbers(key, value.element, value.content)
    return head + b"".join(_string(key, text) for text in value.content)


def _is_empty(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, Value)) and not len(value)


def _of_dtype(key: str, dtype: str, value: Any) -> Value:
    name = _DTYPE.get(dtype.removeprefix("torch."))
    if name is None or len(value.shape) > 1:
        raise UsageError(f"key {key!r}: {dtype} {list(value.shape)} cannot be stored in a GGUF file")
    if not value.shape:
        return Value(_ID[name], None, value.item())
    return Value(ARRAY, _ID[name], value.tolist())


def _element(key: str, values: Sequence[Any]) -> int:
    if all(isinstance(v, str) for v in values):
        return STRING
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        return _ID["i32" if low >= -(2**31) and high < 2**31 else "i64" if low < 0 else "u64"]
    kinds = {_scalar(key, v) for v in values}
    if kinds == {"bool"}:
        return _ID["bool"]
    if "f32" in kinds and "bool" not in kinds:
        return _ID["f32"]
    raise UsageError(f"key {key!r}: a list of {', '.join(sorted(kinds))} cannot be stored in a GGUF file")


def _scalar(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        for name, low, high in _RANGES:
            if low <= value < high:
                return name
    if isinstance(value, float):
        return "f32"
    raise UsageError(f"key {key!r}: {value!r} of type {type(value).__name__} cannot be stored in a GGUF file")


def _string(key: str, text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"key {key!r}: {text[:32]!r} has no UTF-8 form") from e
    return struct.pack("<Q", len(raw)) + raw


def _numbers(key: str, kind: int, values: Sequence[Any]) -> bytes:
    code = SCALARS[kind].code
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except (struct.error, OverflowError) as e:
        raise UsageError(f"key {key!r}: a value is no {SCALARS[kind].name}: {e}") from e

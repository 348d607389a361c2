"""Names of element types, their sizes, and the way to and from torch and safetensors."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ITEM_BYTES", "SAFETENSORS_NAME", "dtype_name", "from_safetensors", "torch_dtype"]

ITEM_BYTES = {
    "bool": 1,
    "u8": 1,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "u16": 2,
    "u32": 4,
    "u64": 8,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
    "f8_e4m3": 1,
    "f8_e5m2": 1,
    "f8_e8m0": 1,
}

# safetensors spells them in capitals, float8 with an underscore more
SAFETENSORS_NAME = {name: name.upper() for name in ITEM_BYTES}

_FROM_SAFETENSORS = {spelled: name for name, spelled in SAFETENSORS_NAME.items()}

_TORCH = {
    "bool": "bool",
    "u8": "uint8",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "f8_e4m3": "float8_e4m3fn",
    "f8_e5m2": "float8_e5m2",
    "f8_e8m0": "float8_e8m0fnu",
}

_NAME_OF_TORCH = {f"torch.{spelled}": name for name, spelled in _TORCH.items()}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name: `torch_dtype("bf16") is torch.bfloat16`."""
    return _torch_dtypes()[name]


def dtype_name(dtype: object) -> str:
    """The name of a torch dtype: `dtype_name(torch.float16) == "f16"`."""
    return _NAME_OF_TORCH[str(dtype)]


def from_safetensors(spelled: str) -> str | None:
    """The name for a safetensors dtype (`"BF16"` → `"bf16"`), None when unknown here."""
    return _FROM_SAFETENSORS.get(spelled)


@functools.cache
def _torch_dtypes() -> dict[str, torch.dtype]:
    import torch

    return {name: getattr(torch, spelled) for name, spelled in _TORCH.items()}

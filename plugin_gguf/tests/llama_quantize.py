"""llama.cpp's own quantizing, `llama_model_quantize`, called through llama-cpp-python."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantry_gguf.mixes import file_type
from quantry_gguf.types import BY_NAME

COUNT = 43  # GGML_TYPE_COUNT: "not given"


def quantize(
    source: Path, target: Path, name: str, *, importance: Mapping[str, np.ndarray] | None = None,
    overrides: Sequence[tuple[str, str]] = (), output: str | None = None, embedding: str | None = None,
    pure: bool = False, requantize: bool = False,
) -> bool:  # fmt: skip
    """Whether it could: llama.cpp says why not in its log. name: a file type. importance: float32 vectors."""
    import llama_cpp.llama_cpp as api

    silence(api)
    params = api.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 2, file_type(name).id, pure
    params.allow_requantize = requantize
    params.output_tensor_type = COUNT if output is None else BY_NAME[output].id
    params.token_embedding_type = COUNT if embedding is None else BY_NAME[embedding].id
    kept: list[Any] = []
    if importance is not None:
        rows = (api.llama_model_imatrix_data * (len(importance) + 1))()
        for row, (weight, values) in zip(rows, importance.items(), strict=False):
            data = np.ascontiguousarray(values, np.float32)
            row.name, row.size = weight.encode(), data.size
            row.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            kept.append(data)
        params.imatrix = rows
    if overrides:
        asked = (api.llama_model_tensor_override * (len(overrides) + 1))()
        for place, (pattern, type) in zip(asked, overrides, strict=False):
            place.pattern, place.type = pattern.encode(), BY_NAME[type].id
        params.tt_overrides = asked
    return bool(
        api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    )


def silence(api: Any) -> None:
    """Give llama.cpp's log, a line for each tensor, to nobody."""
    if not _HEARD:
        _HEARD.append(api.llama_log_callback(lambda level, text, user: None))
        api.llama_log_set(_HEARD[0], ctypes.c_void_p(0))


_HEARD: list[Any] = []  # ctypes' callbacks live as long as someone holds them

"""llama.cpp's rules for a model of which only the shape is known: what its own tests call.

For architectures whose files ask for dozens of keys. The functions are C++ (llama-ext.h), hence their names.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from gguf_models import Synthetic, in_order
from llama_quantize import silence

from quantry_gguf.mixes import file_type
from quantry_gguf.types import BY_ID

_POINTER = ctypes.c_void_p
_MODEL = "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc"
_STATE = "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params"
_ALLOWS = "_Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor"
_TYPES = "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem"


class _Init(ctypes.Structure):
    """ggml.h `struct ggml_init_params`."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class _Description(ctypes.Structure):
    """llama-ext.h `struct llama_quant_model_desc`."""

    _fields_ = (
        ("arch", ctypes.c_char_p),
        *((n, ctypes.c_uint32) for n in ("embd", "ff", "layers", "heads", "shared", "experts", "k", "v")),
    )


def types(model: Synthetic, name: str) -> dict[str, str]:
    """Tensor → type in a file of type `name` without importance, in llama.cpp's order."""
    import llama_cpp.llama_cpp as api

    silence(api)
    folder = Path(api.__file__).parent / "lib"
    base, llama = (ctypes.CDLL(str(folder / f"lib{part}.so")) for part in ("ggml-base", "llama"))
    size = model.values.get
    description = _Description(
        model.arch.encode(), 256, 256, size("block_count"), size("attention.head_count"),
        size("attention.head_count_kv"), size("expert_count", 0), 64, 64,
    )  # fmt: skip
    params = api.llama_model_quantize_default_params()
    made = _call(llama, _MODEL, ctypes.byref(description))
    state = _call(llama, _STATE, _POINTER(made), ctypes.byref(params))
    context = _call(base, "ggml_init", _Init(16 << 20, None, True))
    tensors = {}
    for tensor in in_order(model):
        ne = (ctypes.c_int64 * len(model.tensors[tensor]))(*model.tensors[tensor][::-1])
        found = _call(base, "ggml_new_tensor", _POINTER(context), 0, len(ne), ne)
        _call(base, "ggml_set_name", _POINTER(found), tensor.encode())
        tensors[tensor] = found
    allows = getattr(llama, _ALLOWS)
    allows.restype = ctypes.c_bool
    asked = [n for n, t in tensors.items() if allows(_POINTER(state), _POINTER(t))]
    pointers = (_POINTER * len(asked))(*(tensors[n] for n in asked))
    ids = (ctypes.c_int * len(asked))()
    compute = getattr(llama, _TYPES)
    compute.restype = None
    compute(_POINTER(state), file_type(name).id, pointers, ids, ctypes.c_size_t(len(asked)))
    return dict.fromkeys(tensors, "f32") | {n: BY_ID[i].name for n, i in zip(asked, ids, strict=True)}


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = _POINTER
    return function(*arguments)

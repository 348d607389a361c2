"""Small models in the shapes that llama.cpp's mixes tell apart, and files of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_files import finish

from quantry_gguf.tensor_types import visit_order

VOCABULARY = 4


@dataclass(frozen=True)
class Synthetic:
    """A model by its key-values and shapes (outermost dimension first): rows are few, they change nothing.

    no_file: llama.cpp would not load a file of these key-values.
    """

    arch: str
    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    no_file: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {"general.architecture": self.arch, **{f"{self.arch}.{k}": v for k, v in self.values.items()}}


def _model(
    arch: str, layers: int, heads: int, shared: int, *, columns: int = 256, tied: bool = False,
    experts: int = 0, fused: bool = False, extra: dict[str, tuple[int, ...]] | None = None, **values: Any,
) -> Synthetic:  # fmt: skip
    """extra: tensors beside the usual ones, `{}` in a name for each layer."""
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, columns),
        "output_norm.weight": (columns,),
    }
    if not tied:
        tensors["output.weight"] = (VOCABULARY, columns)
    stack = (experts,) if experts else ()
    kinds = "_exps" if experts else ""
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (columns,), "ffn_norm.weight": (columns,), "attn_output.weight": (2, columns),
        **dict.fromkeys(
            ("attn_qkv.weight",) if fused else ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
            (2, columns),
        ),
        **{f"ffn_{kind}{kinds}.weight": (*stack, 2, columns) for kind in ("gate", "up", "down")},
    }  # fmt: skip
    if experts:
        layer["ffn_gate_inp.weight"] = (experts, columns)
    for i in range(layers):
        tensors |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
        tensors |= {name.format(i): shape for name, shape in (extra or {}).items()}
    used = {"expert_count": experts, "expert_used_count": 2} if experts else {}
    keys: dict[str, Any] = {
        "block_count": layers, "context_length": 64, "embedding_length": 64 * heads,
        "feed_forward_length": 256, "attention.head_count": heads, "attention.head_count_kv": shared,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
        "attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64,
        "rope.freq_base": 10000.0, "vocab_size": VOCABULARY, **used,
    }  # fmt: skip
    return Synthetic(arch, keys | {key.replace("__", "."): value for key, value in values.items()}, tensors)


_NORMS = {"blk.{}.attn_q_norm.weight": (64,), "blk.{}.attn_k_norm.weight": (64,)}
MODELS = {
    "llama of groups of 4": _model("llama", 8, 8, 2),
    "llama without groups, tied": _model("llama", 16, 4, 4, tied=True),
    "llama of 80 layers": _model("llama", 80, 8, 1),
    "llama of 80 layers without groups": _model("llama", 80, 4, 4),
    "qwen2 of 80 layers": _model("qwen2", 80, 8, 4, extra={"blk.{}.attn_q.bias": (256,)}),
    "qwen3 of groups of 2": _model("qwen3", 12, 4, 2, extra=_NORMS),
    "phi3, fused": _model("phi3", 11, 4, 4, fused=True, extra={"rope_factors_long.weight": (32,)}),
    "mixtral, 8 experts": _model("llama", 10, 8, 2, experts=8),
    "qwen3moe, 4 experts": _model("qwen3moe", 9, 4, 2, experts=4, extra=_NORMS),
    "gemma3 of 640 columns, tied": _model("gemma3", 18, 4, 1, columns=640, tied=True, extra=_NORMS),
    "llama of 96 columns": _model("llama", 4, 4, 1, columns=96),
    "llama of 40 columns": _model("llama", 4, 4, 1, columns=40),
    "falcon": _model("falcon", 17, 4, 4, fused=True),
    "kept tensors": _model(
        "llama", 2, 4, 4,
        extra={
            "blk.{}.attn_k_b": (2, 256), "blk.{}.attn_q_norm.weight": (2, 256), "blk.{}.one.weight": (1, 256),
            "blk.{}.other.weight": (2, 256), "blk.{}.ssm_conv1d.weight": (2, 256),
            "blk.{}.laurel_l.weight": (2, 256), "blk.{}.cube.weight": (1, 2, 256),
            "per_layer_token_embd.weight": (2, 256), "position_embd.weight": (2, 256),
        },
    ),
}  # fmt: skip

_OF_SPECIAL = (
    "attn_q_a", "attn_q_b", "attn_kv_b", "attn_k_b", "attn_v_b", "attn_kv_a_mqa", "nextn.eh_proj", "hc_a",
    "indexer.attn_q_b", "indexer.attn_k", "indexer.k_proj", "indexer.proj", "indexer_compressor_gate",
    "indexer_compressor_ape", "ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta", "time_mix_w1",
    "ffn_gate_tid2eid",
)  # fmt: skip
for _arch in ("glm5-next", "bailingmoe3", "deepseek2"):
    _extra: dict[str, tuple[int, ...]] = {f"blk.{{}}.{name}.weight": (2, 256) for name in _OF_SPECIAL}
    _extra["blk.{}.attn_k_cube.weight"] = (3, 2, 256)
    MODELS[_arch] = replace(_model(_arch, 9, 8, 2, experts=4, extra=_extra), no_file=True)


def write_model(path: Path, model: Synthetic, dtype: str = "f32", seed: int = 0) -> Path:
    """A file of the model with normal weights; dtype: "f32", "f16" or "bf16" for matrices, others are f32."""
    rng = np.random.default_rng(seed)
    w = gguf.GGUFWriter(path, model.arch)
    for key, value in list(model.config.items())[1:]:
        (w.add_float32 if isinstance(value, float) else w.add_uint32)(key, value)
    for name, shape in model.tensors.items():
        data = rng.standard_normal(shape, np.float32)
        kind = gguf.GGMLQuantizationType[dtype.upper()]
        if len(shape) < 2 or dtype == "f32" or "_norm" in name or "gate_inp" in name:
            w.add_tensor(name, data)
        else:
            w.add_tensor(name, gguf.quants.quantize(data, kind), raw_shape=None, raw_dtype=kind)
    finish(w)
    return path


def importance_of(model: Synthetic, seed: int = 1) -> dict[str, np.ndarray]:
    """float32 [matrices · K] for every matrix of the layers, as llama-imatrix collects it."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.random((int(np.prod(shape[:-2])), shape[-1]), np.float32) + np.float32(0.01)).reshape(-1)
        for name, shape in model.tensors.items()
        if len(shape) > 1 and name.startswith("blk.")
    }


def in_order(model: Synthetic) -> list[str]:
    """Tensor names as llama.cpp writes them."""
    return visit_order(model.tensors)

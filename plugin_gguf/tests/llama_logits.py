"""Logits of llama.cpp for every token of a prompt, through llama-cpp-python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from llama_quantize import silence

F32, NO_FLASH = 0, 0


def logits(path: Path, ids: Sequence[int]) -> torch.Tensor:
    """float32 [tokens, vocabulary]; keys and values in float32, attention not fused."""
    import llama_cpp.llama_cpp as api

    silence(api)
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.type_k = settings.type_v = F32
    settings.flash_attn_type = NO_FLASH
    settings.n_threads = settings.n_threads_batch = 1
    context = api.llama_init_from_model(model, settings)
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert api.llama_decode(context, batch) == 0
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (size,)) for i in range(len(ids))]
    found = torch.from_numpy(np.stack(rows))
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return found

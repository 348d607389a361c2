"""What a model does with a weight, judged from its name and shape: no list of architectures."""

from __future__ import annotations

import re
from typing import Literal

from quantry.layout import Shape

__all__ = ["Role", "expert_parts", "expert_slot", "is_plain_name", "ops_of", "role_of"]

Role = Literal["linear", "embedding", "head", "experts", "position", "router", "other"]

# segment before `.weight`; Hugging Face names, then GGUF's
_EMBEDDING = re.compile(r"(embed_tokens\w*|embed_in|wte|tok_embeddings|word_embeddings|token_embd|shared)\Z")
_POSITION = re.compile(
    r"(wpe|position_embeddings?|embed_positions|token_type_embeddings?|pos_embed\w*|position_embd)\Z"
)
_HEAD = re.compile(r"(lm_head|embed_out|output)\Z")
_ROUTER = re.compile(r"(router|gate|wg|ffn_gate_inp\w*|shared_expert_gate|gate_inp)\Z")
_EXPERTS = re.compile(r"\bexperts\b|_exps\b")

# names that nothing but a linear layer has in any model; of others the model is asked where it is known
_LINEAR = re.compile(r"(\w*_proj|fc\d?|c_fc|dense|linear\d?|w[123])\Z")

# one expert's weight in a per-expert checkpoint; mixtral's w1, w3, w2 are gate, up, down
_EXPERT = re.compile(
    r"(?P<prefix>.+\.experts)\.(?P<index>\d+)\.(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight\Z"
)
_PART = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_FUSED = re.compile(r"(?P<stem>.+\.experts)\.gate_up_proj(?P<leaf>\.weight)?\Z")


def role_of(name: str, shape: Shape) -> Role:
    """The part a tensor plays; "other" for norms, convolutions, biases and whatever is not a matrix.

    >>> role_of("model.layers.0.mlp.gate.weight", (8, 64)), role_of("lm_head.weight", (100, 64))
    ('router', 'head')
    """
    stem, dot, leaf = name.rpartition(".")
    module = stem.rpartition(".")[2]
    if len(shape) == 3 and _EXPERTS.search(name) and not name.endswith("bias"):
        return "experts"
    if len(shape) != 2 or not dot or leaf != "weight":
        return "other"
    if _EMBEDDING.match(module):
        return "embedding"
    if _POSITION.match(module):
        return "position"
    if (stem == module and _HEAD.match(module)) or module in ("lm_head", "embed_out"):
        return "head"
    return "router" if _ROUTER.match(module) else "linear"


def is_plain_name(name: str, shape: Shape) -> bool:
    """Whether the name alone leaves no doubt about `role_of`.

    >>> is_plain_name("h.0.attn.q_proj.weight", (8, 8)), is_plain_name("h.0.attn.bias_table.weight", (8, 8))
    (True, False)
    """
    role = role_of(name, shape)
    return role != "linear" or _LINEAR.match(name.removesuffix(".weight").rpartition(".")[2]) is not None


def ops_of(name: str, shape: Shape, tied: bool = False) -> tuple[str, ...]:
    """The ops a runtime needs for the weight. tied: the embedding is the output head too."""
    role = role_of(name, shape)
    if role == "embedding":
        return ("embedding", "linear") if tied else ("embedding",)
    if role == "position":
        return ("embedding",)
    if role == "experts":
        return ("experts",)
    return ("linear",) if role in ("linear", "head", "router") else ()


def expert_slot(name: str) -> tuple[str, int] | None:
    """(name of the stack, expert index) for one expert's weight of a per-expert checkpoint, else None.

    >>> expert_slot("model.layers.0.block_sparse_moe.experts.7.w1.weight")
    ('model.layers.0.block_sparse_moe.experts.gate_proj.weight', 7)
    """
    found = _EXPERT.match(name)
    if found is None:
        return None
    part = _PART.get(found["part"], found["part"])
    return f"{found['prefix']}.{part}.weight", int(found["index"])


def expert_parts(name: str) -> tuple[str, str, str, str] | None:
    """Names of the stacks gate, up and down that plans make beside a fused stack of this name, and of the
    stack of down beside it; None for other names.

    >>> expert_parts("h.0.experts.gate_up_proj")[1::2]
    ('h.0.experts.up_proj.weight', 'h.0.experts.down_proj')
    """
    found = _FUSED.match(name)
    if found is None:
        return None
    gate, up, down = (f"{found['stem']}.{part}_proj.weight" for part in ("gate", "up", "down"))
    return gate, up, down, f"{found['stem']}.down_proj{found['leaf'] or ''}"

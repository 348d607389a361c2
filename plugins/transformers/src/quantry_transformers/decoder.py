"""A model's forward pass for one sequence without the model's own Python, which costs as much as its weights.

Taken for models that are known and whose layers it has been seen to repeat; others run by their own code.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quantry_transformers.decoder_layer import Layer, Turn, norm_of
from quantry_transformers.key_values import KeyValues

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Decoder", "why_not"]

# model types whose layers are what `Layer` computes (transformers 5.24, models/*/modeling_*.py)
_KNOWN = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # angles depend on the position alone
_OWNERS = ("quantry", "torch", "transformers")  # whose modules may stand in a model
_AHEAD = 256  # positions whose angles are made at once
_PROBE = 6  # tokens on which a layer and the model's own are compared
_TOLERANCE = 0.02  # of the largest change: a norm's last bit can move an int8 activation by one step
_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def why_not(model: PreTrainedModel) -> str | None:
    """The sentence that says why a model runs by its own code, or None; asked before each generation."""
    if os.environ.get("QUANTRY_DECODER") == "off":
        return "QUANTRY_DECODER=off"
    reason = _unknown(model)
    if reason is None and model not in _agrees:
        _agrees[model] = _repeats(model)
    if reason is None and not _agrees[model]:
        return "the decoder's layers do not compute what this release of transformers does"
    return reason


def _unknown(model: PreTrainedModel) -> str | None:
    config = model.config
    if config.model_type not in _KNOWN:
        return f"model type {config.model_type!r} is not one of {', '.join(_KNOWN)}"
    if model.dtype is not torch.float32 or model.device.type != "cpu":
        return f"float32 on the CPU only, not {model.dtype} on {model.device}"
    if config._attn_implementation != "sdpa":
        return f"attention is {config._attn_implementation!r}, not 'sdpa'"
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "final_logit_softcapping", 0):
        return "attention or logits are not those of a plain causal model"
    rotary = model.model.rotary_emb
    kinds = set(rotary.rope_type.values()) if isinstance(rotary.rope_type, dict) else {rotary.rope_type}
    if not kinds.issubset(_FIXED_ROPE):
        return f"rotary angles of type {', '.join(sorted(kinds))} change with the length"
    if any(2 * frequencies.numel() != _width(config) for frequencies in rotary.buffers()):
        return "rotary angles turn a part of each head"
    if nn.modules.module._has_any_global_hook():
        return "a hook watches all modules"
    for name, module in model.named_modules():
        reason = _module_reason(module)
        if reason is not None:
            return f"{name or type(model).__name__} {reason}"
    return None


def _module_reason(module: nn.Module) -> str | None:
    if module.training:
        return "is in training mode"
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return "has hooks"
    if type(module).__module__.partition(".")[0] not in _OWNERS:
        return f"is a {type(module).__name__}, which the decoder does not know"
    return None


class Decoder:
    """Prompt, then one token at a time: logits [vocabulary] of the last token, float32."""

    def __init__(self, model: PreTrainedModel, room: int) -> None:
        config, base = model.config, model.model
        self._embed, self._head = base.embed_tokens.forward, model.lm_head.forward
        self._norm = norm_of(base.norm)
        self._angles = _Angles(base.rotary_emb, config)
        self._layers = []
        for layer in base.layers[: config.num_hidden_layers]:
            kind = getattr(layer.self_attn, "layer_type", None)
            window = getattr(layer.self_attn, "sliding_window", getattr(config, "sliding_window", None))
            run = Layer(layer, config.num_attention_heads, config.num_key_value_heads, _width(config))
            self._layers.append((run, self._angles.kind(kind), window, KeyValues(room, window)))
        self._position = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [tokens]: the whole prompt first, then one token at a time."""
        return self._step(ids) if self._position else self._prompt(ids)

    def _prompt(self, ids: Tensor) -> Tensor:
        count = ids.shape[0]
        x = self._embed(ids)
        masks: dict[int | None, Tensor | None] = {None: None}
        for run, kind, window, seen in self._layers:
            if window not in masks:
                masks[window] = _window_mask(count, window) if window and count > window else None
            x = run.prompt(x, self._angles.turn(kind, 0, count), seen, masks[window])
        self._position = count
        logits: Tensor = self._head(self._norm(x[-1:]))[0]
        return logits

    def _step(self, token: Tensor) -> Tensor:
        at = self._position
        turns = [self._angles.turn(kind, at, 1) for kind in self._angles.kinds]
        x = self._hidden(self._embed(token), turns)
        self._position = at + 1
        logits: Tensor = self._head(x)[0]
        return logits

    def _hidden(self, x: Tensor, turns: list[Turn]) -> Tensor:
        """What the head gets for one token's embedding [1, hidden]."""
        for run, kind, _, seen in self._layers:
            x = run.step(x, turns[kind], seen)
        return self._norm(x)


class _Angles:
    """cos and sin of a model's rotary module, made for many positions at once."""

    def __init__(self, rotary: Any, config: Any) -> None:
        self._rotary = rotary
        self.typed = isinstance(rotary.rope_type, dict)
        self.names = sorted(rotary.rope_type) if self.typed else [None]
        self.kinds = range(len(self.names))
        self._made: list[Turn] = [Turn(torch.empty(0), torch.empty(0))] * len(self.names)

    def kind(self, layer_type: str | None) -> int:
        """Index of a layer's angles."""
        return self.names.index(layer_type) if self.typed else 0

    def turn(self, kind: int, first: int, count: int) -> Turn:
        """Of positions first … first + count - 1."""
        cos, sin = self._made[kind]
        if first + count > cos.shape[0]:
            cos, sin = self._made[kind] = self._make(kind, first + count + _AHEAD)
        return Turn(cos.narrow(0, first, count), sin.narrow(0, first, count))

    def _make(self, kind: int, count: int) -> Turn:
        positions = torch.arange(count).unsqueeze(0)
        named = (self.names[kind],) if self.typed else ()
        cos, sin = (t[0].unsqueeze(1) for t in self._rotary(torch.empty(0), positions, *named))
        sin = sin.clone()
        sin[..., : sin.shape[-1] // 2].neg_()
        return Turn(cos, sin)


def _width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _window_mask(count: int, window: int) -> Tensor:
    ages = torch.arange(count).unsqueeze(1) - torch.arange(count)
    return (ages >= 0) & (ages < window)


def _repeats(model: PreTrainedModel) -> bool:
    """Whether one layer of each kind changes a few tokens as the model's own does, prompt and step."""
    try:
        with torch.inference_mode():
            return all(_layer_repeats(model, index) for index in _one_of_each_kind(model))
    except (AttributeError, TypeError):
        return False  # modules of another release of transformers


def _one_of_each_kind(model: PreTrainedModel) -> list[int]:
    kinds = [getattr(layer.self_attn, "layer_type", None) for layer in model.model.layers]
    return [kinds.index(kind) for kind in dict.fromkeys(kinds)]


def _layer_repeats(model: PreTrainedModel, index: int) -> bool:
    decoder = Decoder(model, _PROBE)
    x = decoder._embed(torch.arange(1, _PROBE + 1) % model.config.vocab_size)
    run, kind, _, seen = decoder._layers[index]
    angles, named = decoder._angles, ()
    if angles.typed:
        named = (angles.names[kind],)
    positions = torch.arange(_PROBE).unsqueeze(0)
    turned = model.model.rotary_emb(x, positions, *named)
    expected = model.model.layers[index](
        x.unsqueeze(0), position_embeddings=turned, position_ids=positions, attention_mask=None
    )
    expected = (expected[0] if isinstance(expected, tuple) else expected).view(x.shape)
    last = _PROBE - 1
    found = [run.prompt(x[:last], angles.turn(kind, 0, last), seen, None)]
    found.append(run.step(x[last:], angles.turn(kind, last, 1), seen))
    return bool((torch.cat(found) - expected).abs().max() <= _TOLERANCE * (expected - x).abs().max())

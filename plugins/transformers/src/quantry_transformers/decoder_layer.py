"""One decoder layer as a short list of torch calls: the arithmetic of the model's own layer, in its order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from quantry import LinearGroup

if TYPE_CHECKING:
    from quantry_transformers.key_values import KeyValues

__all__ = ["Layer", "Norm", "Turn", "norm_of"]


class Norm(NamedTuple):
    """RMS norm, `x * rsqrt(mean(x²) + eps) * weight`, as `x * rsqrt(sum(x²) + width eps) * gain`.

    gain: weight · √width, [width] or [heads, width].
    """

    gain: Tensor
    eps: Tensor  # of the sum

    def __call__(self, x: Tensor) -> Tensor:
        """x [*, width] or [*, heads, width]."""
        squares = torch.linalg.vecdot(x, x).unsqueeze(-1)
        return torch.mul(x, squares.add_(self.eps).rsqrt_()).mul_(self.gain)


def norm_of(module: nn.Module) -> Norm:
    """What an RMSNorm of transformers computes; Gemma's multiplies by one plus its weight."""
    weight = module.weight.detach()
    width = weight.shape[-1]
    eps = getattr(module, "variance_epsilon", None)
    if eps is None:
        weight, eps = 1.0 + weight, module.eps
    return Norm(weight * math.sqrt(width), torch.tensor(width * eps))


class Turn(NamedTuple):
    """Rotary position of each token: cos and sin [tokens, 1, width], the first half of sin negative."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, heads, width]."""
        swapped = x.unflatten(-1, (2, -1)).flip(-2).view(x.shape)
        return torch.addcmul(x * self.cos, swapped, self.sin)


class Layer:
    """Attention and MLP of one layer around the residual stream [tokens, hidden], float32.

    Norms before each half; Gemma 3 has them behind each half, too, and on the heads of q and k as Qwen 3 has.
    """

    def __init__(self, layer: Any, heads: int, kv_heads: int, width: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.kv_heads, self.width = heads, kv_heads, width
        self.hidden = layer.input_layernorm.weight.shape[-1]
        self.scaling: float = attention.scaling
        self.qkv = LinearGroup((attention.q_proj, attention.k_proj, attention.v_proj))
        self.out: Callable[[Tensor], Tensor] = attention.o_proj.forward
        self.gate_up = LinearGroup((mlp.gate_proj, mlp.up_proj))
        self.activation: Callable[[Tensor], Tensor] = mlp.act_fn.forward
        self.down: Callable[[Tensor], Tensor] = mlp.down_proj.forward
        self.head_norm = _head_norm(attention, heads, kv_heads)
        self.before_attention = norm_of(layer.input_layernorm)
        self.after_attention = self.after_mlp = None
        if hasattr(layer, "pre_feedforward_layernorm"):
            self.after_attention = norm_of(layer.post_attention_layernorm)
            self.before_mlp = norm_of(layer.pre_feedforward_layernorm)
            self.after_mlp = norm_of(layer.post_feedforward_layernorm)
        else:
            self.before_mlp = norm_of(layer.post_attention_layernorm)

    def step(self, x: Tensor, turn: Turn, seen: KeyValues) -> Tensor:
        """The next token's [1, hidden]; its key and value are added to `seen`."""
        both, v = self._heads(self.before_attention(x), turn)
        return self._mlp(self._add(x, self.out(self.attend(both, v, seen)), self.after_attention))

    def attend(self, both: Tensor, v: Tensor, seen: KeyValues) -> Tensor:
        """[1, heads · width] of the next token, from what `_heads` gives."""
        heads = self.heads
        keys, values = seen.append(both[0, heads:], v.view(self.kv_heads, self.width))
        # heads that share a key are rows of one product; where that leaves one product, the BLAS would cut it
        # into threads, twice a call: heads stay apart then, and sdpa cuts once
        products = self.kv_heads if self.kv_heads > 1 else heads
        q = both[:, :heads].view(1, products, -1, self.width)
        y = scaled_dot_product_attention(
            q, keys, values, scale=self.scaling, enable_gqa=products != self.kv_heads
        )
        return y.view(1, -1)

    def prompt(self, x: Tensor, turn: Turn, seen: KeyValues, mask: Tensor | None) -> Tensor:
        """The prompt's [tokens, hidden]. mask [tokens, tokens]: where a window is shorter than the prompt."""
        both, v = self._heads(self.before_attention(x), turn)
        both = both.transpose(0, 1).unsqueeze(0)  # [1, heads, tokens, width]
        q, k = both[:, : self.heads], both[:, self.heads :]
        v = v.view(1, -1, self.kv_heads, self.width).transpose(1, 2)
        seen.start(k, v)
        y = scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=self.scaling, enable_gqa=self.heads != self.kv_heads
        )
        return self._mlp(self._add(x, self.out(y[0].transpose(0, 1).flatten(1)), self.after_attention))

    def _heads(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Turned q and k in one [tokens, heads + kv_heads, width], and v as it comes."""
        q, k, v = self.qkv(x)
        both = torch.cat((q, k), -1).view(-1, self.heads + self.kv_heads, self.width)
        return turn(both if self.head_norm is None else self.head_norm(both)), v

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.before_mlp(x))
        return self._add(x, self.down(self.activation(gate).mul_(up)), self.after_mlp)

    @staticmethod
    def _add(x: Tensor, y: Tensor, norm: Norm | None) -> Tensor:
        return x + (y if norm is None else norm(y))


def _head_norm(attention: Any, heads: int, kv_heads: int) -> Norm | None:
    if not hasattr(attention, "q_norm"):
        return None
    q, k = norm_of(attention.q_norm), norm_of(attention.k_norm)
    gain = torch.cat((q.gain.expand(heads, -1), k.gain.expand(kv_heads, -1)))
    return Norm(gain, q.eps)

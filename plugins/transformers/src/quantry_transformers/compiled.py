"""A decoder whose arithmetic between matrix products is C++ that torch.compile makes, on request.

The compiled graph calls packed weights and attention by number, and the decoder that runs knows them: no
packed weight and no length is part of the graph, so one graph serves all prompts.
"""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quantry import UsageError
from quantry_transformers.decoder import Decoder
from quantry_transformers.decoder_layer import Layer, Norm, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from quantry_transformers.key_values import KeyValues

__all__ = ["CompiledDecoder"]

_Part = Callable[..., Sequence[Tensor]]

_lib = torch.library.Library("quantry_transformers", "DEF")
_lib.define("part(Tensor[] given, int number, SymInt[] widths) -> Tensor[]")
_active = threading.local()  # .parts: those of the decoder that steps in this thread
_compiled: WeakKeyDictionary[nn.Module, Callable[..., Tensor]] = WeakKeyDictionary()


def _part(given: Sequence[Tensor], number: int, widths: Sequence[int]) -> Sequence[Tensor]:
    parts: Sequence[_Part] = _active.parts
    return parts[number](*given)


_lib.impl("part", _part, "CompositeExplicitAutograd")


@torch.library.register_fake("quantry_transformers::part", lib=_lib)
def _fake_part(given: Sequence[Tensor], number: int, widths: Sequence[int]) -> list[Tensor]:
    return [given[0].new_empty((1, width)) for width in widths]


class CompiledDecoder(Decoder):
    """As `Decoder`, the prompt uncompiled. The first step of a model compiles, for half a minute or so.

    Raises UsageError at the first step where torch cannot compile, for want of a C++ compiler above all.
    """

    def __init__(self, model: PreTrainedModel, room: int) -> None:
        super().__init__(model, room)
        self._parts: list[_Part] = []
        self._outlined = [(self._outline(run, seen), kind) for run, kind, _, seen in self._layers]
        if model not in _compiled:
            _compiled[model] = _compile()
        self._run = _compiled[model]

    def _hidden(self, x: Tensor, turns: list[Turn]) -> Tensor:
        _active.parts = self._parts
        try:
            return self._run(self._outlined, self._norm, x, turns)
        except torch._dynamo.exc.TorchDynamoException as e:
            raise UsageError(
                f"the model cannot be compiled: {_cause(e)}",
                hint="torch.compile needs a C++ compiler: install g++ or set CXX, or leave --compile out.",
            ) from e
        finally:
            del _active.parts

    def _outline(self, run: Layer, seen: KeyValues) -> Layer:
        """The layer with its matrix products and attention called by number."""
        layer = copy.copy(run)
        width = run.width
        layer.qkv = self._numbered(run.qkv, [n * width for n in (run.heads, run.kv_heads, run.kv_heads)])
        layer.gate_up = self._numbered(run.gate_up, [m.out_features for m in run.gate_up.modules])
        layer.down = self._numbered_one(run.down, run.hidden)
        # attention with the product behind it, which nothing lies between
        attend = self._numbered_one(lambda both, v: run.out(run.attend(both, v, seen)), run.hidden)
        layer.attend = lambda both, v, seen: attend(both, v)  # type: ignore[method-assign]
        layer.out = lambda y: y
        return layer

    def _numbered(self, part: _Part, widths: list[int]) -> _Part:
        self._parts.append(part)
        return functools.partial(_call, len(self._parts) - 1, widths)

    def _numbered_one(self, part: Callable[..., Tensor], width: int) -> Callable[..., Tensor]:
        self._parts.append(lambda *given: (part(*given),))
        return functools.partial(_call_one, len(self._parts) - 1, [width])


def _call(number: int, widths: list[int], *given: Tensor) -> Sequence[Tensor]:
    results: Sequence[Tensor] = torch.ops.quantry_transformers.part.default(given, number, widths)
    return results


def _call_one(number: int, widths: list[int], *given: Tensor) -> Tensor:
    return _call(number, widths, *given)[0]


def _step(layers: list[tuple[Layer, int]], norm: Norm, x: Tensor, turns: list[Turn]) -> Tensor:
    for layer, kind in layers:
        x = layer.step(x, turns[kind], None)  # type: ignore[arg-type]  # `attend` knows what was seen
    return norm(x)


def _compile() -> Callable[..., Tensor]:
    """`_step` compiled for one model.

    torch keeps graphs by code object. Each model gets its own, so that no graph has to ask whose it is:
    checking 2,000 attributes of layers costs as much as a layer.
    """
    step = types.FunctionType(_step.__code__.replace(), globals(), _step.__name__)
    options = {
        "guard_filter_fn": lambda guards: [False for _ in guards],
        "size_asserts": False,
        "alignment_asserts": False,  # a kernel may give rows of one buffer
    }
    return torch.compile(step, fullgraph=True, dynamic=False, options=options)


def _cause(e: BaseException) -> str:
    inner = getattr(e, "inner_exception", e)
    return f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0]}"

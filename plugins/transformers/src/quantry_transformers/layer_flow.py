"""The decoder layers of a model as a chain: what enters the first, what each is called with, what leaves the
last.

The model's own forward pass runs with stand-ins for its layers and its output head, so masks, rotary angles,
scales and norms around the layers are the model's, whatever they are called. A model whose layers are no
chain, or are called with something that depends on the text, is refused with the reason.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LayerFlow", "NoChain", "head_input", "layers_of"]

_HIDDEN = "hidden_states"
# what transformers' or a folder's own code raises over a stand-in that it cannot work with
_CODE_ERRORS = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeError)


class NoChain(Exception):
    """Why a model's layers cannot be run one by one, each for all chunks of a text."""


class _Reached(Exception):
    """The head is called: the rest of the forward pass is not needed."""


class _Call(NamedTuple):
    """What a layer is called with beside its hidden states."""

    args: tuple[Any, ...]
    options: Mapping[str, Any]
    by_name: bool  # the hidden states are


class _Trace(NamedTuple):
    """One forward pass: hidden states before the first layer, calls of the layers, input of the head."""

    entering: Tensor
    calls: Sequence[_Call]
    leaving: Tensor


class LayerFlow:
    """Chunks [1, tokens] of equal length through the layers of a model that may be on the meta device.

    Raises NoChain where the model does more between layers than hand on hidden states, judged by two passes
    over `ids` with different stand-ins.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self._model = model
        self.path, self.layers = layers_of(model)
        names = [n for n, _ in self.layers.named_parameters(remove_duplicate=False)]
        if len(names) > len(list(self.layers.parameters())):
            raise NoChain("its layers share weights")
        self._in_tuple = False
        try:
            calls = self._calls(ids)
        except NoChain:
            self._in_tuple = True  # some classes return a tuple, and take its first
            calls = self._calls(ids)
        self.calls = calls

    def enter(self, ids: Tensor) -> Tensor:
        """Hidden states [1, tokens, hidden] that the first layer gets.

        Raises NoChain where these ids change what layers are called with.
        """
        trace = self._trace(ids, lambda index, hidden: hidden)
        if not _same(trace.calls, self.calls):
            raise NoChain("its layers are called with something that depends on the text")
        return trace.entering

    def apply(self, index: int, hidden: Tensor) -> Tensor:
        """What layer `index`, which has its weights, makes of hidden states."""
        args, options, by_name = self.calls[index]
        layer = self.layers[index]
        out = layer(*args, hidden_states=hidden, **options) if by_name else layer(hidden, *args, **options)
        return out if isinstance(out, Tensor) else out[0]

    def leave(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """What the head gets when the last layer gives `hidden`."""
        last = len(self.calls) - 1
        return self._trace(ids, lambda index, entering: hidden if index == last else entering).leaving

    def _calls(self, ids: Tensor) -> Sequence[_Call]:
        """The layers' calls, which must not depend on what layers give."""
        first, second = (self._trace(ids, functools.partial(_shifted, by)).calls for by in (1.0, 2.0))
        if not _same(first, second):
            raise NoChain("its layers are called with something that earlier layers give")
        return first

    def _trace(self, ids: Tensor, answer: Callable[[int, Tensor], Tensor]) -> _Trace:
        calls: list[_Call] = []
        hidden: list[Tensor] = []  # before the first layer, then what each gives

        def stand_in(index: int, *args: Any, **options: Any) -> Any:
            by_name = not args
            given = options.pop(_HIDDEN, None) if by_name else args[0]
            if index != len(calls) or not isinstance(given, Tensor):
                raise NoChain("its layers do not run one after the other")
            if hidden and given is not hidden[-1]:
                raise NoChain("it changes hidden states between layers")
            hidden[:] = [*hidden[:1], given] if hidden else [given]
            calls.append(_Call(args[1:], options, by_name))
            hidden.append(answer(index, given))
            return (hidden[-1],) if self._in_tuple else hidden[-1]

        with contextlib.ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                stack.enter_context(_forward(layer, functools.partial(stand_in, index)))
            try:
                leaving = head_input(self._model, ids)
            except _CODE_ERRORS as e:
                raise NoChain(f"its code takes no stand-ins for layers: {e}") from e
        if leaving is None or not calls:
            raise NoChain("its output head is no module that its forward pass calls")
        return _Trace(hidden[0], calls, leaving)


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers. Raises NoChain where it is not certain which list that is."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    outer = [(p, m) for p, m in lists if not any(p.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        raise NoChain(f"it has {len(outer)} lists of {depth} layers")
    return outer[0]


def head_input(model: PreTrainedModel, ids: Tensor) -> Tensor | None:
    """What the output head is called with for ids [1, tokens]; None where it is not. Logits are not made."""
    found: list[Tensor] = []

    def reached(x: Tensor, *_: Any, **__: Any) -> Tensor:
        found.append(x)
        raise _Reached

    head = model.get_output_embeddings()
    with contextlib.ExitStack() as stack:
        if head is not None:
            stack.enter_context(_forward(head, reached))
        with contextlib.suppress(_Reached):
            model(input_ids=ids, use_cache=False)
    return found[0] if found else None


def _shifted(by: float, index: int, hidden: Tensor) -> Tensor:
    return hidden + by


@contextlib.contextmanager
def _forward(module: nn.Module, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Call `stand_in` for the module's forward within the block."""
    module.forward = stand_in
    try:
        yield
    finally:
        del module.forward


def _same(a: Any, b: Any, known: set[tuple[int, int]] | None = None) -> bool:
    """Whether two values are the same for a layer; never for objects that it could keep something in.

    known: ids of tensors that are equal; layers are called with the same few.
    """
    known = set() if known is None else known
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a is b or (id(a), id(b)) in known:
            return True
        known.add((id(a), id(b)))
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(value, b[key], known) for key, value in a.items())
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y, known) for x, y in zip(a, b, strict=True))
    if isinstance(a, (torch.dtype, torch.device)):
        return bool(a == b)
    return (a is None and b is None) or (isinstance(a, (bool, int, float, str)) and a == b)

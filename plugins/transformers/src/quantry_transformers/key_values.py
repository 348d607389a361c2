"""Keys and values of one layer in memory taken once, so that no token copies those before it."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["KeyValues"]

_SPARE = 256  # steps between two moves of a window to the front of its buffer
_Pair: TypeAlias = tuple[Tensor, Tensor]


class KeyValues:
    """Keys and values [1, heads, tokens, width] of the tokens so far.

    room: tokens that may come in all. window: a token sees itself and window - 1 before it; None: all.
    """

    __slots__ = ("_keys", "_length", "_room", "_values", "_window")

    def __init__(self, room: int, window: int | None) -> None:
        self._window = window
        self._room = room if window is None else min(room, 2 * window + _SPARE)
        self._length = 0
        self._keys = self._values = torch.empty(0)

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Take the prompt's, [1, heads, tokens, width]; what no later token sees is left out."""
        if self._window is not None:
            first = max(0, keys.shape[2] - self._window + 1)
            keys, values = keys[:, :, first:], values[:, :, first:]
        shape = (1, keys.shape[1], self._room, keys.shape[3])
        self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        self._length = keys.shape[2]
        self._keys[:, :, : self._length] = keys
        self._values[:, :, : self._length] = values

    def append(self, key: Tensor, value: Tensor) -> _Pair:
        """Take one token's, [heads, width]; views of what this token sees."""
        if self._length == self._room:
            self._move()
        at = self._length
        self._keys[0, :, at] = key
        self._values[0, :, at] = value
        self._length = at + 1
        first = 0 if self._window is None else max(0, at + 1 - self._window)
        size = at + 1 - first
        return self._keys.narrow(2, first, size), self._values.narrow(2, first, size)

    def _move(self) -> None:
        assert self._window is not None, "more tokens than room was asked for"
        kept = self._window - 1
        for buffer in (self._keys, self._values):
            buffer[:, :, :kept] = buffer[:, :, self._length - kept : self._length]
        self._length = kept

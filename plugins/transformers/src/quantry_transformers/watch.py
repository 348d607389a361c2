"""Shows an observer what modules are multiplied by while they run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantry import UsageError

if TYPE_CHECKING:
    from quantry import Observer
    from quantry_transformers.weight_names import Watched

__all__ = ["Watch"]


@dataclass(slots=True)
class _Seen:
    """An input that modules running one after the other share. experts: chosen ones [T, k], of a stack."""

    x: Tensor
    experts: Tensor | None
    expert: int | None
    names: list[str]
    version: int

    def is_of(self, x: Tensor, experts: Tensor | None, expert: int | None) -> bool:
        """Whether another module has the same input: equal memory, unchanged since."""
        return (
            experts is self.experts
            and expert == self.expert
            and x.data_ptr() == self.x.data_ptr()
            and x.shape == self.x.shape
            and x.stride() == self.x.stride()
            and x._version == self.version
        )


class Watch:
    """watched: path of a module → the weights it stands for. Needs tensors outside of inference mode."""

    def __init__(self, observe: Observer, watched: Mapping[str, Watched]) -> None:
        self._observe = observe
        self._watched = watched
        self._seen: _Seen | None = None

    @contextlib.contextmanager
    def on(self, root: nn.Module, path: str = "") -> Iterator[None]:
        """Watch the modules below `root`, which stands at `path` of the model, within the block."""
        handles = [
            module.register_forward_pre_hook(functools.partial(self._see, watched), with_kwargs=True)
            for name, module in root.named_modules(prefix=path)
            if (watched := self._watched.get(name)) is not None
        ]
        try:
            yield
        finally:
            self._seen = None
            for handle in handles:
                handle.remove()

    def flush(self) -> None:
        """Tell what is seen and not yet told; due after each call of what is watched.

        Raises UsageError for a model that has changed it in the meantime.
        """
        seen, self._seen = self._seen, None
        if seen is None or not seen.x.numel():
            return  # an expert that no token has chosen
        if seen.x._version != seen.version:
            raise UsageError(
                "the model changes the input of this weight in place: it cannot be observed",
                tensor=seen.names[0],
            )
        x, experts = seen.x, seen.experts
        if experts is not None:
            x = x.expand(-1, experts.shape[1], -1)  # [T, k, K]
            experts = experts.reshape(-1)
        x = x.reshape(-1, x.shape[-1])
        if seen.expert is not None:
            experts = torch.full((x.shape[0],), seen.expert, device=x.device)
        self._observe(tuple(seen.names), x, experts)

    def _see(self, watched: Watched, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, *rest = (*args, *named.values())
        experts = rest[0] if rest else None
        seen = self._seen
        if seen is not None and seen.is_of(x, experts, watched.expert):
            seen.names += watched.names
            return
        self.flush()
        self._seen = _Seen(x, experts, watched.expert, list(watched.names), x._version)

"""A topology held against a model: layers and tensors that it names exist, and types are installed."""

from __future__ import annotations

from collections.abc import Collection

from quantry.errors import UsageError
from quantry.isq_types import resolve_quantizer
from quantry.quantizer import Quantizer
from quantry.topology import Topology, layer_of

__all__ = ["check_pins", "pinned_quantizer"]


def check_pins(topology: Topology, names: Collection[str]) -> None:
    """Raise UsageError naming the first entry, with its line, that does not fit a model of these tensors."""
    if not topology.pins:
        return
    count = max((layer + 1 for name in names if (layer := layer_of(name)) is not None), default=0)
    for pin in topology.pins:
        if pin.regex is None and pin.end > count:
            raise pin.refuse(f"leaves the model, which has {count} layers: 0 to {count - 1}" if count else
                             "speaks of layers, and the model's names have none")  # fmt: skip
        if not any(pin.takes(name) for name in names):
            raise pin.refuse("matches no tensor of the model", hint="`quantry inspect --tensors` lists them.")
        if pin.isq is not None:
            try:
                resolve_quantizer(pin.isq, pin.device or "cpu")
            except UsageError as e:
                raise pin.refuse(f"names an {e.problem}", hint=e.hint) from e


def pinned_quantizer(topology: Topology, name: str) -> Quantizer | None:
    """The quantizer pinned for a tensor, a width judged for the device pinned; None without a type."""
    isq = topology.pin(name)
    return None if isq is None else resolve_quantizer(isq, topology.device(name) or "cpu")

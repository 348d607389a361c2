"""In-situ quantization of a module in place, and of one layer's weight by a model's rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantry.dtypes import dtype_name
from quantry.errors import QuantryError
from quantry.importance_files import importance_by_weight
from quantry.isq_checks import importance_of, packed
from quantry.isq_pins import check_pins
from quantry.isq_plan import Selection, choose
from quantry.isq_types import resolve_quantizer
from quantry.plugins import registry
from quantry.quantizer import Quantizer
from quantry.roles import Role, role_of
from quantry.tensor import QuantizedTensor
from quantry.topology import Topology

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["pack_layer", "quantize_model"]


def quantize_model(
    model: nn.Module,
    name: str,
    importance: Mapping[str, Tensor] | None = None,
    topology: Topology | Mapping[str, Any] | str | Path | None = None,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> dict[str, str]:
    """Replace every `nn.Linear` and `nn.Embedding` of a model by its packed form, freeing each dense weight.

    importance: by module or weight name. Stacks of experts are packed where an installed plugin knows their
    module (`ModulePacker`). Routers stay dense, as do subclasses whose forward is their own and weights that
    no fallback fits. Returns module (or parameter) name → layout, or the sentence why it stayed dense.
    """
    quantizer = _resolved(model, name)
    selection = Selection.of(include, exclude, topology=topology)
    names_of = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    check_pins(selection.topology, names_of)
    if importance:
        importance = importance_by_weight(importance, names_of)
    done: dict[str, str] = {}
    owners: dict[int, nn.Module] = {}
    names = [
        n for n, module in model.named_modules(remove_duplicate=False) if n and _kind(module) is not None
    ]
    for module_name in names:
        done |= _swap_one(model, module_name, quantizer, selection, importance or {}, owners)
    for module_name, module in list(model.named_modules()):
        if module_name:
            done |= _swap_other(model, module_name, module, quantizer, selection, importance or {})
    return done


def pack_layer(
    name: str,
    weight: Tensor,
    isq: str | Quantizer,
    role: Role | None = None,
    *,
    selection: Selection | None = None,
    importance: Mapping[str, Tensor] | None = None,
) -> QuantizedTensor | str:
    """One weight of a model as ISQ packs it there: promoted where sensitive, a fallback where it does not
    divide.

    name: of the weight in the model ("model.layers.0.mlp.up_proj.weight"); with the shape it tells the role,
    unless `role` does. Returns the sentence why it stays dense where the rules leave it so, "" where they do
    not speak of it.
    """
    quantizer = resolve_quantizer(isq, str(weight.device)) if isinstance(isq, str) else isq
    selection = selection or Selection()
    shape = tuple(weight.shape)
    role = role or role_of(name, shape)
    pin = selection.pin(name, role)
    if pin is None and not selection.takes(name, role):
        return ""
    asked = quantizer if pin is None else pin
    choice = choose(asked, role, shape, dtype_name(weight.dtype), pinned=pin is not None, for_uqff=False)
    if choice.quantizer is None:
        return choice.reason or "no type fits"
    try:
        stats = importance_of(importance or {}, choice.quantizer, name, shape)
        return packed(choice.quantizer, weight, choice.layout, stats, name=name)
    except QuantryError as e:
        e.tensor = e.tensor or name
        raise


def _resolved(model: nn.Module, name: str) -> Quantizer:
    """The type, a width judged for the device where the model lies."""
    first = next(iter(model.parameters()), None)
    device = "cpu" if first is None or first.device.type == "meta" else str(first.device)
    return resolve_quantizer(name, device, measure=True)


def _kind(module: nn.Module) -> str | None:
    """ "linear" or "embedding" for modules whose forward is torch's own."""
    from torch import nn

    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return "linear"
    if isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward:
        return "embedding"
    return None


def _swap_one(
    model: nn.Module,
    name: str,
    quantizer: Quantizer,
    selection: Selection,
    importance: Mapping[str, Tensor],
    owners: dict[int, nn.Module],
) -> dict[str, str]:
    """Pack one module. owners: id of a dense weight → the module that has it now, where modules share it."""
    from quantry.nn import swap

    module: Any = model.get_submodule(name)
    weight: Tensor = module.weight
    if id(weight) in owners:
        return _swap_shared(model, name, module, owners[id(weight)])
    full = f"{name}.weight"
    role: Role = "embedding" if _kind(module) == "embedding" else role_of(full, tuple(weight.shape))
    qt = pack_layer(full, weight, quantizer, role, selection=selection, importance=importance)
    if isinstance(qt, str):
        return {name: qt} if qt else {}
    owners[id(weight)] = replacement = _packed_module(module, qt)
    swap(model, name, replacement)
    return {name: str(qt.layout)}


def _swap_other(
    model: nn.Module,
    name: str,
    module: nn.Module,
    quantizer: Quantizer,
    selection: Selection,
    importance: Mapping[str, Tensor],
) -> dict[str, str]:
    """Pack a module that a plugin knows; say so of a stack of experts that none does."""
    from quantry.nn import PackedModule, swap

    if isinstance(module, PackedModule):
        return {}
    for packer in registry().packers:
        roles = packer.weights(module)
        made: dict[str, QuantizedTensor] = {}
        for leaf, role in roles.items():
            full = f"{name}.{leaf}"
            weight = module.get_parameter(leaf)
            qt = pack_layer(full, weight, quantizer, role, selection=selection, importance=importance)
            if isinstance(qt, str):
                return {full: qt} if qt else {}
            made[leaf] = qt
        if made:
            swap(model, name, packer.pack(module, made))
            return {f"{name}.{leaf}": str(qt.layout) for leaf, qt in made.items()}
    return {
        f"{name}.{leaf}": "stays dense: no installed plugin knows how its module multiplies by it"
        for leaf, parameter in module.named_parameters(recurse=False)
        if role_of(f"{name}.{leaf}", tuple(parameter.shape)) == "experts"
    }


def _packed_module(module: Any, qt: QuantizedTensor) -> nn.Module:
    from quantry.nn import QuantEmbedding, QuantLinear

    made: QuantEmbedding | QuantLinear
    if _kind(module) == "embedding":
        made = QuantEmbedding(qt, padding_idx=module.padding_idx)
    else:
        made = QuantLinear(qt, module.bias)
    made.compute_dtype = module.weight.dtype
    return made


def _swap_shared(model: nn.Module, name: str, module: Any, owner: nn.Module) -> dict[str, str]:
    """A weight that another module has packed: that module again, or an output head over its embedding."""
    from quantry.nn import QuantEmbedding, QuantLinear, TiedHead, swap

    bias = getattr(module, "bias", None)
    if isinstance(owner, QuantEmbedding) and _kind(module) == "linear" and bias is None:
        swap(model, name, TiedHead(owner))
    elif (
        isinstance(owner, QuantEmbedding if _kind(module) == "embedding" else QuantLinear)
        and owner.bias is bias
    ):
        swap(model, name, owner)
    else:
        return {name: "stays dense: it shares its weight with a module of another kind"}
    return {name: str(owner.layout)}

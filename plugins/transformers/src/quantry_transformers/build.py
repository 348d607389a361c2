"""A transformers model on the meta device, filled tensor by tensor with packed weights."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantry import FormatError, HeaderError, QuantEmbedding, QuantizedTensor, QuantLinear, TiedHead, swap
from quantry_transformers.expert_weights import Stack, expert_stacks, load_part
from quantry_transformers.packed_experts import PackedExperts
from quantry_transformers.weights import HfWeights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from quantry_transformers.placing import Placing

__all__ = ["Blueprint", "blueprint", "build_model", "skeleton", "tied_head"]


def build_model(
    config: PreTrainedConfig, weights: HfWeights, placing: Placing, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model with every weight in place, packed as stored or as `placing` says; kernels are not chosen.

    Raises FormatError naming the first tensor that is missing, that the model has no place for, or whose
    shape differs.
    """
    plan = blueprint(config, weights, placing.dtype, trust_remote_code)
    plan.fill(placing)
    return plan.model


def blueprint(
    config: PreTrainedConfig, weights: HfWeights, dtype: torch.dtype, trust_remote_code: bool = False
) -> Blueprint:
    """The model without data, and where each tensor goes; raises as `build_model` does."""
    model = skeleton(config, dtype, trust_remote_code).eval()
    current = _current_name(model)
    own_names = {current(name): name for name in weights}
    weights = weights.renamed(current)
    stacks = expert_stacks(model, weights)
    return Blueprint(model, weights, own_names, stacks, _wanted(model, weights, stacks))


@dataclass(frozen=True)
class Blueprint:
    """A model whose weights are still to come.

    weights: under the model's names. own_names: the model's name of a tensor → the checkpoint's. names: of
    the tensors that are not part of a stack of experts, in file order.
    """

    model: PreTrainedModel
    weights: HfWeights
    own_names: Mapping[str, str]
    stacks: Sequence[Stack]
    names: Sequence[str]

    def fill(self, placing: Placing, takes: Callable[[str], bool] = lambda name: True) -> None:
        """Put values into the parameters and buffers whose names `takes` accepts.

        Raises FormatError for one that has none.
        """
        model, weights, known = self.model, self.weights, set(self.names)
        for name in self.names:
            stem, _, leaf = name.rpartition(".")
            # a bias comes with its weight
            if takes(name) and (leaf != "bias" or f"{stem}.weight" not in known):
                _place(model, name, weights, placing)
        for stack in self.stacks:
            if not takes(f"{stack.path}.down_proj"):
                continue
            packed = {
                part: placing.experts(f"{stack.path}.{part}.weight", load_part(weights, names))
                for part, names in stack.parts.items()
            }
            swap(model, stack.path, PackedExperts(model.get_submodule(stack.path), packed))
        if any(takes(name) for name in tied_head(model, weights)):
            _tie(model, weights)
        _fill_buffers(model, placing.device, takes)
        _refuse_meta(model, weights, takes)


def skeleton(
    config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model's modules without data. The class picks its attention: Gemma 2's softcap needs eager."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), _quiet():
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError,
    ) as e:  # fmt: skip
        raise HeaderError(
            f"transformers cannot build {config.model_type!r} from this configuration: {e}"
        ) from e


def _current_name(model: PreTrainedModel) -> Callable[[str], str]:
    """The name by which the model knows a tensor: mixtral's blocks were renamed in transformers 5."""
    has_old = any(".block_sparse_moe" in name for name, _ in model.named_modules())
    return lambda name: name if has_old else name.replace(".block_sparse_moe.", ".mlp.")


def _wanted(model: PreTrainedModel, weights: HfWeights, stacks: Sequence[Stack]) -> list[str]:
    """The file's tensors in file order but those of expert stacks; the model has each, and in its shape.

    None is lacking.
    """
    file = weights.checkpoint.source.path
    taken = {name for stack in stacks for name in stack.names}
    given = {name for stack in stacks for name in stack.parameters}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    ignored = [re.compile(p) for p in model._keys_to_ignore_on_load_unexpected or ()]
    wanted = []
    for name in weights:
        if name in taken:
            continue
        shape = tuple(weights.entry(name).shape)
        if name not in expected:
            if any(p.search(name) for p in ignored):
                continue  # the class names what old checkpoints hold in vain
            raise FormatError(
                f"{type(model).__name__} has no parameter {name!r}",
                file=file,
                tensor=weights.stored_name(name),
            )
        if shape != expected[name]:
            raise FormatError(
                f"has shape {list(shape)}, {type(model).__name__} needs {list(expected[name])}",
                file=file,
                tensor=weights.stored_name(name),
            )
        wanted.append(name)
    tied = set(tied_head(model, weights))
    for name in expected:
        if name not in weights and name not in tied and name not in given:
            raise FormatError(f"is missing; {type(model).__name__} needs it", file=file, tensor=name)
    return wanted


def _place(model: PreTrainedModel, name: str, weights: HfWeights, placing: Placing) -> None:
    stem, _, leaf = name.rpartition(".")
    module = model.get_submodule(stem)
    if leaf != "weight" or not isinstance(module, (nn.Linear, nn.Embedding)):
        _set(module, leaf, placing.dense(name, weights[name]))
        if leaf == "weight" and f"{stem}.bias" in weights:
            _set(module, "bias", placing.dense(f"{stem}.bias", weights[f"{stem}.bias"]))
        return
    bias = placing.dense(f"{stem}.bias", weights[f"{stem}.bias"]) if f"{stem}.bias" in weights else None
    packed = placing.matrix(name, weights[name], _ops(model, module, weights))
    if not isinstance(packed, QuantizedTensor):
        _set(module, "weight", packed)
        if bias is not None:
            _set(module, "bias", bias)
    elif isinstance(module, nn.Embedding):
        scale = getattr(module, "scalar_embed_scale", None)  # Gemma's embedding multiplies its rows itself
        swap(model, stem, QuantEmbedding(packed, scale=scale, padding_idx=module.padding_idx))
    else:
        swap(model, stem, QuantLinear(packed, bias))


def _ops(model: PreTrainedModel, module: nn.Module, weights: HfWeights) -> tuple[str, ...]:
    if not isinstance(module, nn.Embedding):
        return ("linear",)
    tied = module is model.get_input_embeddings() and tied_head(model, weights)
    return ("embedding", "linear") if tied else ("embedding",)


def _set(module: nn.Module, leaf: str, value: torch.Tensor) -> None:
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def tied_head(model: PreTrainedModel, weights: HfWeights) -> list[str]:
    """Names of the output head's parameters when the embedding's weight is to be used for it."""
    head = model.get_output_embeddings()
    if head is None or not model.config.get_text_config().tie_word_embeddings:
        return []
    names = [name for name, module in model.named_modules() if module is head]
    return [f"{name}.weight" for name in names if f"{name}.weight" not in weights]


def _tie(model: PreTrainedModel, weights: HfWeights) -> None:
    for name in tied_head(model, weights):
        stem = name.removesuffix(".weight")
        embedding = model.get_input_embeddings()
        if isinstance(embedding, QuantEmbedding):
            swap(model, stem, TiedHead(embedding))
            # transformers would tie `.weight` again after every move, and there is none
            model._tied_weights_keys = None
            model.all_tied_weights_keys = {}
        else:
            model.get_submodule(stem).weight = embedding.weight


def _fill_buffers(model: PreTrainedModel, device: str, takes: Callable[[str], bool]) -> None:
    """Make the buffers that are computed, not stored: rotary frequencies, embedding scales."""
    for stem, module in list(model.named_modules()):
        buffers = module._buffers.items()
        if any(b is not None and b.is_meta and takes(f"{stem}.{leaf}") for leaf, b in buffers):
            config = getattr(module, "config", model.config)
            if isinstance(module, nn.Embedding):
                module._buffers["embed_scale"] = torch.tensor(module.scalar_embed_scale, device=device)
                continue
            try:
                fresh = type(module)(config)
            except TypeError:
                continue  # made of something else than the configuration: reported as lacking a value
            module._buffers.update(
                {n: None if b is None else b.to(device) for n, b in fresh._buffers.items()}
            )


def _refuse_meta(model: PreTrainedModel, weights: HfWeights, takes: Callable[[str], bool]) -> None:
    from quantry import PackedModule

    for stem, module in model.named_modules():
        own = {**module._parameters, **({} if isinstance(module, PackedModule) else module._buffers)}
        for leaf, tensor in own.items():
            if tensor is not None and tensor.is_meta and takes(f"{stem}.{leaf}"):
                raise FormatError(
                    "has no value in the file, and none can be computed",
                    file=weights.checkpoint.source.path,
                    tensor=f"{stem}.{leaf}",
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns about configurations it fills in; ours are complete."""
    logger: Any = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""The runtime: any checkpoint whose model transformers knows, built with packed weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from quantry import HeaderError, Runtime, UsageError
from quantry_transformers.architectures import architecture

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from quantry import Adapter, Calibrated, Checkpoint, Exported, Observer, Role
    from quantry_transformers.weights import HfWeights

__all__ = ["TransformersRuntime"]

# keys of config.json that describe the packing, which the checkpoint's format has already read
_PACKING_KEYS = ("quantization_config", "quantization")
_LAYER = re.compile(r"\blayers\.(\d+)\.")


class TransformersRuntime(Runtime):
    """GGUF files of the known architectures; folders with a `config.json` of any causal language model."""

    name: ClassVar[str] = "transformers"
    conventions: ClassVar[tuple[str, ...]] = ("gguf",)

    def why_not(self, checkpoint: Checkpoint) -> str | None:
        """Declines unknown GGUF architectures, and folders without `config.json`."""
        if checkpoint.format.name == "gguf":
            try:
                architecture(checkpoint.architecture)
            except UsageError as e:
                return f"{e.problem}. {e.hint}"
            return None
        if "model_type" not in checkpoint.config:
            return f"{checkpoint.source.root} has no config.json that names a model_type"
        return None

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        numerics: Literal["exact", "strict", "fast"] = "strict",
        reference: bool = False,
        isq: str | None = None,
        adapters: Sequence[Adapter] = (),
        trust_remote_code: bool = False,
    ) -> tuple[Any, Any]:
        """(model, tokenizer). dtype None: the checkpoint's if all is dense, else float32 (CPU), bfloat16."""
        from quantry import prepare, registry, use
        from quantry_transformers.adapters import attach, changes_of
        from quantry_transformers.build import blueprint
        from quantry_transformers.generation import generation_config
        from quantry_transformers.placing import Placing
        from quantry_transformers.tokenizer import load_tokenizer

        registry().device(device)
        _check_isq(checkpoint, isq)
        config, weights = configured(checkpoint, trust_remote_code)
        dtype = dtype or _default_dtype(checkpoint, config, device, isq)
        # first, so that what it needs for a moment is given back before the weights are there
        tokenizer = load_tokenizer(checkpoint, trust_remote_code)
        with use(numerics=numerics, reference="allow" if reference else "deny"):
            plan = blueprint(config, weights, dtype, trust_remote_code)
            model = plan.model
            changes = changes_of(adapters, checkpoint, model, dtype)  # before the weights, which take long
            plan.fill(Placing(dtype, device, isq))
            model.generation_config = generation_config(checkpoint, config, tokenizer)
            prepare(model, dtype, numerics, reference)
            attach(model, changes, dtype, device)
        return model, tokenizer

    def calibrate(
        self,
        checkpoint: Checkpoint,
        text: str,
        observe: Observer,
        *,
        chunks: int | None = None,
        chunk_tokens: int = 512,
        device: str = "cpu",
        progress: Callable[[int, int, str], None] | None = None,
        trust_remote_code: bool = False,
    ) -> Calibrated:
        """Layer by layer where the model's layers are a chain; see `quantry_transformers.calibrate`."""
        from quantry_transformers.calibrate import calibrate

        return calibrate(
            checkpoint, text, observe, chunks=chunks, chunk_tokens=chunk_tokens, device=device,
            progress=progress, trust_remote_code=trust_remote_code,
        )  # fmt: skip

    def roles(self, checkpoint: Checkpoint) -> Mapping[str, Role]:
        """From the model's modules, built without data; {} where transformers does not know the model."""
        from quantry_transformers.model_roles import roles_of

        return roles_of(checkpoint)

    def export(self, checkpoint: Checkpoint) -> Exported | None:
        """A GGUF file as transformers names it; None for others, whose names are transformers' already."""
        from quantry_transformers.export import hf_state

        return hf_state(checkpoint) if checkpoint.format.name == "gguf" else None

    def other_names(self, checkpoint: Checkpoint, convention: str) -> Mapping[str, str]:
        """GGUF's names of a checkpoint's weights; {} for architectures that GGUF has no names for."""
        from quantry_transformers.gguf_names import gguf_names

        return gguf_names(checkpoint) if convention == "gguf" else {}

    def export_as(self, checkpoint: Checkpoint, convention: str) -> Exported | None:
        """What a GGUF file of a folder's model holds; None for GGUF files, which hold it already.

        Raises as `gguf_state.gguf_state` does.
        """
        from quantry_transformers.gguf_state import gguf_state

        return None if convention != "gguf" or checkpoint.format.name == "gguf" else gguf_state(checkpoint)


def configured(checkpoint: Checkpoint, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, HfWeights]:
    """transformers' configuration of a checkpoint, and its weights under transformers' names."""
    from transformers import AutoConfig

    from quantry_transformers.config import hf_config
    from quantry_transformers.weights import folder_weights, gguf_weights

    if checkpoint.format.name == "gguf":
        fields = hf_config(checkpoint)
        return _auto_config(fields), gguf_weights(checkpoint, fields)
    fields = {
        k: v
        for k, v in checkpoint.config.items()
        if k not in _PACKING_KEYS and not k.startswith("_mistralrs_")
    }
    if "auto_map" in fields and trust_remote_code:
        config = AutoConfig.from_pretrained(checkpoint.source.root, trust_remote_code=True)
        for key in _PACKING_KEYS:
            config.__dict__.pop(key, None)
    else:
        config = _auto_config(fields)
    _check_depth(checkpoint, config)
    return config, folder_weights(checkpoint, config)


def _check_depth(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """The tensors bound what a lying configuration can make us build."""
    stated = getattr(config.get_text_config(), "num_hidden_layers", None)
    found = max((int(m[1]) + 1 for name in checkpoint.names() if (m := _LAYER.search(name))), default=None)
    if found is not None and isinstance(stated, int) and stated > found:
        raise HeaderError(
            f"num_hidden_layers is {stated}, but there are tensors of {found} layers",
            file=checkpoint.source.root / "config.json",
        )


def _auto_config(fields: dict[str, Any]) -> PreTrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = dict(fields)
    kind = fields.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **fields)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, StrictDataclassError) as e:
        raise HeaderError(f"transformers has no model type {kind!r} with this configuration: {e}") from e


def _check_isq(checkpoint: Checkpoint, isq: str | None) -> None:
    if isq is not None and not any(e.ops and e.layout.family == "dense" for e in checkpoint.entries()):
        raise UsageError(
            f"every weight is packed already; {isq!r} is for dense ones",
            file=checkpoint.source.path,
            hint="Leave isq out, or start from the model before it was quantized.",
        )


def _default_dtype(
    checkpoint: Checkpoint, config: PreTrainedConfig, device: str, isq: str | None
) -> torch.dtype:
    import torch

    packed = isq is not None or any(e.layout.family != "dense" for e in checkpoint.entries())
    if checkpoint.format.name != "gguf" and not packed and isinstance(config.dtype, torch.dtype):
        return config.dtype
    # kernels on the CPU compute in float32; casting activations there would only cost
    return torch.float32 if device == "cpu" else torch.bfloat16

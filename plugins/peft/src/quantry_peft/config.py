"""`adapter_config.json`: ranks and scales, and a refusal of all that LoRA matrices alone do not say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantry import HeaderError, UsageError

__all__ = ["CONFIG", "LoraConfig", "read_config"]

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 16 << 20  # patterns of a model with 10,000 layers have 1 MB

# peft 0.21 LoraConfig: what was used to train or to choose modules; the saved matrices say the rest
_OF_TRAINING = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("megatron_core", "qalora_group_size", "fan_in_fan_out"),
}
_READ = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("init_lora_weights", "bias"),
}
# initializations that leave the base weights as they are
_NEUTRAL_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# options that change what is computed, and by which name people know them
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "alora_invocation_tokens": "an activated LoRA, at work behind certain tokens only",
    "lora_bias": "biases of lora_B",
    "modules_to_save": "whole modules beside the LoRA (modules_to_save)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "layer_replication": "layers that occur several times (layer_replication)",
}
_REPEATED_GROUP = re.compile(r"\)[*+{]")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Rank and scale of each module."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool

    def rank_of(self, module: str) -> int:
        """`rank_pattern`'s first key that matches the end of the module's name, else `r`."""
        return self.ranks.get(_key(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / √r with `use_rslora`."""
        rank, alpha = self.rank_of(module), self.alphas.get(_key(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_config(path: Path) -> LoraConfig:
    """What the file says.

    Raises HeaderError for one that is damaged, UsageError for what matrices of low rank do not hold.
    """
    fields = _json(path)
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise UsageError(f"is a {kind!r} adapter; only 'LORA' can be read", file=path)
    for option, what in _REFUSED.items():
        if fields.get(option):
            raise UsageError(f"asks for {what}, which cannot be added beside packed weights", file=path)
    if fields.get("bias", "none") != "none":
        raise UsageError(f"has trained biases (bias={fields['bias']!r}), which cannot be added", file=path)
    init = fields.get("init_lora_weights")
    if init not in _NEUTRAL_INITS:
        raise UsageError(
            f"was initialized with {init!r}, which changes the base weights too", file=path,
            hint="Save it with save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )  # fmt: skip
    for option in fields.keys() - _OF_TRAINING - _READ - _REFUSED.keys():
        if fields[option]:
            raise UsageError(f"asks for {option!r}, which is not known here", file=path)
    return LoraConfig(
        _number(fields, "r", path, int),
        _number(fields, "lora_alpha", path, float),
        _pattern(fields, "rank_pattern", path, int),
        _pattern(fields, "alpha_pattern", path, float),
        bool(fields.get("use_rslora")),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise HeaderError(f"has more than {MAX_CONFIG_BYTES >> 20} MB", file=path)
        fields = json.loads(path.read_bytes())
    except OSError as e:
        raise UsageError(f"cannot be read: {e.strerror or e}", file=path) from e
    except (ValueError, RecursionError) as e:
        raise HeaderError(f"is no JSON: {e}", file=path) from e
    if not isinstance(fields, dict):
        raise HeaderError(f"holds a {type(fields).__name__}, not an object", file=path)
    return fields


def _number(fields: Mapping[str, Any], name: str, path: Path, kind: type, where: str = "") -> Any:
    value: Any = fields.get(name)
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or (kind is int and value < 1):
        what = "a positive whole number" if kind is int else "a number"
        raise HeaderError(f"{where or name} is {value!r}, not {what}", file=path)
    return kind(value)


def _pattern(fields: Mapping[str, Any], name: str, path: Path, kind: type) -> dict[str, Any]:
    given = fields.get(name) or {}
    if not isinstance(given, dict):
        raise HeaderError(f"{name} is {given!r}, not an object", file=path)
    for key in given:
        try:
            re.compile(key)
        except re.error as e:
            raise HeaderError(f"{name} has the key {key!r}, no regular expression: {e}", file=path) from e
        if _REPEATED_GROUP.search(key):  # matching it may take for ever
            raise HeaderError(f"{name} has the key {key!r}, which repeats a group", file=path)
    return {key: _number(given, key, path, kind, f"{name}[{key!r}]") for key in given}


def _key(pattern: Mapping[str, Any], module: str) -> str:
    """peft's own rule (utils/other.py, get_pattern_key)."""
    return next((key for key in pattern if re.match(rf"(.*\.)?({key})$", module)), module)

"""Which dist to install for what is missing: sentences for errors, never used to choose anything."""

from __future__ import annotations

import importlib.metadata

__all__ = ["dist_for_family", "dist_for_method", "dist_for_suffix", "dist_for_tag", "what_to_install"]

# a directory of published dists, as a phone book is: nothing in the core behaves differently by it
_FAMILY = {
    "ggml": "quantry-gguf",
    "ggml_panel": "quantry-gguf",
    "f8q8": "quantry-fp8",
    "f8q8_panel": "quantry-fp8",
}
_SUFFIX = {".gguf": "quantry-gguf"}
_METHOD = {
    "gptq": "quantry-gptq",
    "awq": "quantry-awq",
    "fp8": "quantry-fp8",
    "bitsandbytes": "quantry-bnb",
    "hqq": "quantry-hqq",
    "mxfp4": "quantry-mx",
}
_UQFF_TAG = (
    "quantry-gguf",
    "quantry",
    "quantry-hqq",
    "quantry-fp8",
    "quantry-afq-metal",
    "quantry-fp8",
    "quantry-mx",
)


def what_to_install(family: str, device: str) -> str:
    """The sentence that ends a NoKernelError."""
    dist = _FAMILY.get(family)
    if dist is not None and not _installed(dist):
        return f"Install {dist}, or permit the slow path: reference='allow'."
    where = "" if device == "cpu" else ', run on the CPU (device="cpu")'
    served = f"Install a plugin whose kernels serve this layout{where}"
    return f"{served}, or permit the slow path: reference='allow'."


def dist_for_family(family: str) -> str | None:
    """The dist whose layouts are of this family, None when unknown."""
    return _FAMILY.get(family)


def dist_for_suffix(suffix: str) -> str | None:
    """The dist that reads files with this suffix, None when it is installed or unknown."""
    dist = _SUFFIX.get(suffix)
    return None if dist is None or _installed(dist) else dist


def dist_for_method(method: str) -> str | None:
    """The dist that reads checkpoints of this `quant_method`, None when unknown."""
    return _METHOD.get(method)


def dist_for_tag(tag: int) -> str:
    """The dist that reads layers of a UQFF 1.2 tag, 0 to 6."""
    return _UQFF_TAG[tag]


def _installed(dist: str) -> bool:
    try:
        importlib.metadata.version(dist)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

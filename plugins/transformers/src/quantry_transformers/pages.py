"""Give the pages of mapped weight files back once what lay there has been repacked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from quantry import PackedModule

if TYPE_CHECKING:
    from quantry import MappedFile, Source

__all__ = ["SourcePages"]

_WEIGHT_FILES = (".gguf", ".uqff", ".safetensors")


class SourcePages:
    """Which packed modules of a model still lie in the source's files; `release` is for `quantry.prepare`.

    Pages that reading touched so far are given back at once: each weight is read again when it is repacked.
    """

    def __init__(self, source: Source, model: nn.Module) -> None:
        files = [source.file(name) for name in source.files if name.endswith(_WEIGHT_FILES)]
        self._files = [(_address(mapped), mapped) for mapped in files if mapped.size]
        for _, mapped in self._files:
            mapped.drop(0, mapped.size)
        self._held = {
            name: [(b.data_ptr(), b.nbytes) for b in module.buffers()]
            for name, module in model.named_modules()
            if isinstance(module, PackedModule)
        }

    def release(self, name: str, module: PackedModule) -> None:
        """Drop the pages that module `name` came from and has left."""
        kept = {b.data_ptr() for b in module.buffers()}
        for pointer, nbytes in self._held.pop(name, ()):
            if pointer not in kept:
                self._drop(pointer, nbytes)

    def _drop(self, pointer: int, nbytes: int) -> None:
        for start, mapped in self._files:
            if start <= pointer and pointer + nbytes <= start + mapped.size:
                mapped.drop(pointer - start, nbytes)


def _address(mapped: MappedFile) -> int:
    return torch.frombuffer(mapped.buffer(), dtype=torch.uint8).data_ptr()

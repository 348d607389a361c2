"""Settings that results must not depend on, for the length of a block."""

from __future__ import annotations

import contextlib
import unittest
from collections.abc import Iterator

import torch

from quantry.native import NativeLibrary

__all__ = ["on_target", "on_threads"]


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """torch, and native code with it, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def on_target(library: NativeLibrary, name: str) -> Iterator[None]:
    """A native library on one of its instruction sets. Skips the test where this machine lacks it."""
    if name not in library.targets():
        raise unittest.SkipTest(f"needs a machine with {name}")
    library.set_target(name)
    try:
        yield
    finally:
        library.set_target(None)

"""The native CPU library: found, loaded at first use, its status codes as errors.

Nothing here runs at import. A missing or foreign library is a sentence from `why_not`, never an import error.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable
from ctypes import addressof, c_int, c_int64, c_void_p
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from quantry import KernelError, PluginError, QuantryError, ShapeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DTYPES",
    "BoundLinear",
    "TARGETS",
    "fail",
    "library",
    "scratch",
    "set_target",
    "target",
    "threads",
    "why_not",
]

TARGETS = ("scalar", "avx2", "avx512", "neon")
"""Instruction sets by their number in the C functions (quantry/dispatch.h), slowest first."""

_P, _I, _L = c_void_p, c_int, c_int64

# argument types by function, as declared in native/cpu/entry.cpp
_SIGNATURES = {
    "target_runs": [_I],
    "openmp_address": [],
    "type_sizes": [_I, _P],
    "pack": [_I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _I],
    "unpack": [_I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _I],
    "linear_scratch": [_I, _I, _I, _L, _L, _I, _P],
    "linear": [_I, _I, _I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _P, _P, _I, _P, _L],
    "linear_bound": [_P, _I, _L, _P, _L, _P, _P, _I, _P, _L],
    "linear_dx_scratch": [_I, _L, _L, _I, _P],
    "linear_dx": [_I, _I, _I, _L, _L, _L, _P, _L, _P, _P, _P, _L, _P, _I, _P, _L],
    "embedding": [_I, _I, _I, _P, _L, _L, _L, _P, _P, _P, _L, _P, _I],
    "embedding_rows": [_I, _I, _I, _P, _L, _L, _L, _P, _L, _P, _I],
    "encode": [_I, _I, _P, _P, _P, _L, _L, _I],  # encode_entry.cpp
    "dense_scratch": [_I, _I, _L, _L, _P],
    "dense": [_I, _I, _I, _L, _L, _L, _P, _L, _P, _L, _P, _P, _I, _P, _L],
}


class BoundLinear(ctypes.Structure):
    """entry.cpp, QuantryBoundLinear: one weight as `linear_bound` takes it."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int32) for name in ("target", "type", "exact", "unused")),
        *((name, c_int64) for name in ("rows", "columns")),
        *((name, c_void_p) for name in ("codes", "high", "meta")),
        ("plane_bytes", c_int64),
    ]


# quantry/status.h
_ERRORS: dict[int, tuple[type[QuantryError], str]] = {
    1: (KernelError, "this processor lacks the chosen instruction set"),
    2: (KernelError, "no native kernel for this block type or element type"),
    3: (ShapeError, "a size is negative, or the columns are not a multiple of the block"),
    4: (ShapeError, "a buffer is missing or its size does not fit the shape"),
    5: (KernelError, "the scratch buffer is too small"),
    6: (KernelError, "a row index is out of range"),
}


class _DtypeCodes(dict[Any, int]):
    """Number of a torch dtype in the C functions (QuantryDtype, quantry/status.h); filled at first use."""

    def __missing__(self, dtype: Any) -> int:
        import torch

        known = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
        if dtype not in known:
            raise KernelError(f"native kernels take float32, float16 and bfloat16, not {dtype}")
        self.update(known)
        return known[dtype]


DTYPES = _DtypeCodes()

_target: int | None = None
_one_thread = False


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, functions typed. Raises PluginError with the reason when there is none."""
    reason = why_not()
    if reason is not None:
        raise PluginError(reason)
    return _loaded()[0]


def why_not() -> str | None:
    """The sentence that says why native kernels cannot run here, or None."""
    return _loaded()[1]


def target() -> int:
    """Number of the instruction set in use: the best one here, or what QUANTRY_CPU_TARGET names."""
    if _target is None:
        set_target(os.environ.get("QUANTRY_CPU_TARGET"))
    assert _target is not None  # set_target gave it a value or raised
    return _target


def set_target(name: str | None) -> None:
    """Use one of TARGETS from now on; None or "" for the best. Raises UsageError if it cannot run here."""
    global _target
    runs = [i for i in range(len(TARGETS)) if library().quantry_gguf_target_runs(i)]
    names = [TARGETS[i] for i in runs]
    if not name:
        _target = runs[-1]
    elif name in names:
        _target = TARGETS.index(name)
    else:
        raise UsageError(
            f"instruction set {name!r} does not run here", hint=f"Choose one of {', '.join(names)}."
        )


def threads() -> int:
    """Threads a call may use: torch's setting; one after a fork (no pool) or beside a second pool."""
    return 1 if _one_thread else _torch_threads()()


@functools.cache
def _torch_threads() -> Callable[[], int]:
    import torch

    return torch.get_num_threads


def fail(status: int, what: str) -> NoReturn:
    """Raise the error a non-zero status stands for; `what` names the call and its sizes."""
    kind, sentence = _ERRORS.get(status, (KernelError, f"native code returned status {status}"))
    raise kind(f"{what}: {sentence}")


def scratch(function: str, *arguments: int) -> tuple[Tensor, int]:
    """The scratch buffer that a call of `function` needs, and its size."""
    import torch

    need = c_int64()
    status = getattr(library(), f"quantry_gguf_{function}_scratch")(*arguments, addressof(need))
    if status:
        fail(status, f"scratch of {function}{arguments}")
    return torch.empty(need.value, dtype=torch.uint8), need.value


@functools.cache
def _loaded() -> tuple[ctypes.CDLL, None] | tuple[None, str]:
    import torch  # noqa: F401  first: its OpenMP runtime must be the one that our library binds to

    suffix = {"win32": ".dll"}.get(sys.platform, ".so")
    resource = files("quantry_gguf") / "_native" / f"quantry_gguf_cpu{suffix}"
    if not resource.is_file():
        return None, "quantry-gguf was installed without its native library; reinstall its wheel"
    try:
        with as_file(resource) as path:
            lib = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(lib, f"quantry_gguf_{name}")
            function.argtypes, function.restype = arguments, c_int
        lib.quantry_gguf_openmp_address.restype = c_void_p
    except (OSError, AttributeError) as e:
        return None, f"the native library of quantry-gguf does not load: {e}"
    _share_openmp(lib)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)
    return lib, None


def _use_one_thread() -> None:
    global _one_thread
    _one_thread = True


def _share_openmp(lib: ctypes.CDLL) -> None:
    """Fall back to one thread when torch and our library bound different OpenMP runtimes.

    Two pools of spinning workers on the same cores turn 58 µs into 8 ms.
    """
    import torch

    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
        theirs = ctypes.cast(torch_cpu.omp_get_max_threads, c_void_p).value
    except (OSError, AttributeError):
        return  # a torch without OpenMP, or built in one piece: nothing to fight with
    ours = lib.quantry_gguf_openmp_address()
    if ours == theirs:
        return
    _use_one_thread()
    warnings.warn(
        f"two OpenMP runtimes are loaded: {_file_at(ours)} by quantry-gguf, {_file_at(theirs)} by torch;"
        " native kernels run on one thread. Import torch before libraries that bring another OpenMP runtime.",
        RuntimeWarning,
        stacklevel=2,
    )


def _file_at(address: int | None) -> str:
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if address and maps.exists() else ():
        span, *_, path = line.split(maxsplit=5)
        first, last = (int(part, 16) for part in span.split("-"))
        if first <= address < last:
            return path
    return "an unknown file"

"""A plugin's native CPU library: found, loaded at first use, its status codes as errors.

Nothing here runs at import. A missing or foreign library is a sentence from `why_not`, never an import error.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from ctypes import addressof, c_int, c_int64, c_void_p
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from quantry.errors import KernelError, PluginError, QuantryError, ShapeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NativeLibrary", "Signatures"]

Signatures = Mapping[str, Sequence[Any]]
"""Function name without the library's prefix → ctypes argument types; every function returns a status."""

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


class NativeLibrary:
    """The shared library that a plugin's wheel carries, built with `quantry_add_library` of quantry-kernels.

    ```python
    LIBRARY = NativeLibrary("quantry_gptq", "quantry_gptq_cpu", "quantry_gptq", "quantry-gptq", {
        "unpack": [c_void_p, c_int64, c_void_p],
    })
    status = LIBRARY.library().quantry_gptq_unpack(...)
    ```
    package: import package whose folder `_native` holds the library `stem`.so. prefix: stands before every
    function's name. dist: what users install. Every library exports `<prefix>_target_runs` and
    `<prefix>_openmp_address`.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("scalar", "avx2", "avx512", "neon")
    """Instruction sets by their number in the C functions (quantry/dispatch.h), slowest first."""

    DTYPES: ClassVar[_DtypeCodes] = _DtypeCodes()
    """Number of a torch dtype in the C functions; KernelError for a dtype that they do not take."""

    def __init__(
        self, package: str, stem: str, prefix: str, dist: str, signatures: Signatures | None = None
    ) -> None:
        self.package, self.stem, self.prefix, self.dist = package, stem, prefix, dist
        self._signatures: dict[str, Sequence[Any]] = {"target_runs": [c_int], "openmp_address": []}
        self._signatures.update(signatures or {})
        self._lock = threading.Lock()
        self._library: ctypes.CDLL | None = None
        self._reason: str | None = None
        self._target: int | None = None
        self._one_thread = False
        self._count_threads: Callable[[], int] = self._torch_threads

    def __repr__(self) -> str:
        return f"NativeLibrary({self.package!r}, {self.stem!r})"

    def declare(self, signatures: Signatures) -> None:
        """Add functions that the library exports; before its first use."""
        self._signatures.update(signatures)
        if self._library is not None:
            self._type(self._library, signatures)

    def library(self) -> ctypes.CDLL:
        """The loaded library, functions typed. Raises PluginError with the reason when there is none."""
        if self._library is None:
            reason = self.why_not()
            if reason is not None:
                raise PluginError(reason)
            assert self._library is not None  # loading gave it or a reason
        return self._library

    def why_not(self) -> str | None:
        """The sentence that says why native kernels cannot run here, or None."""
        if self._library is None and self._reason is None:
            with self._lock:
                if self._library is None and self._reason is None:
                    self._load()
        return self._reason

    def function(self, name: str) -> Callable[..., int]:
        """The C function `<prefix>_<name>`."""
        found: Callable[..., int] = getattr(self.library(), f"{self.prefix}_{name}")
        return found

    def target(self) -> int:
        """Number of the instruction set in use: the best one here, or what QUANTRY_CPU_TARGET names."""
        if self._target is None:
            self.set_target(os.environ.get("QUANTRY_CPU_TARGET"))
        assert self._target is not None  # set_target gave it a value or raised
        return self._target

    def targets(self) -> list[str]:
        """Instruction sets of the library that run here, slowest first."""
        runs = self.function("target_runs")
        return [name for i, name in enumerate(self.TARGETS) if runs(i)]

    def set_target(self, name: str | None) -> None:
        """Use one of TARGETS from now on; None or "" for the best. Raises UsageError if it cannot run
        here."""
        names = self.targets()
        if name and name not in names:
            raise UsageError(
                f"instruction set {name!r} does not run here", hint=f"Choose one of {', '.join(names)}."
            )
        self._target = self.TARGETS.index(name or names[-1])

    def threads(self) -> int:
        """Threads a call may use: torch's setting; one after a fork (no pool) or beside a second pool."""
        return 1 if self._one_thread else self._count_threads()

    def scratch(self, function: str, *arguments: int) -> tuple[Tensor, int]:
        """The scratch buffer that a call of `function` needs, and its size."""
        import torch

        need = c_int64()
        status = self.function(f"{function}_scratch")(*arguments, addressof(need))
        if status:
            self.fail(status, f"scratch of {function}{arguments}")
        return torch.empty(need.value, dtype=torch.uint8), need.value

    @staticmethod
    def fail(status: int, what: str) -> NoReturn:
        """Raise the error a non-zero status stands for; `what` names the call and its sizes."""
        kind, sentence = _ERRORS.get(status, (KernelError, f"native code returned status {status}"))
        raise kind(f"{what}: {sentence}")

    @staticmethod
    def dtype_reason(dtype: str) -> str | None:
        """Why activations of a dtype, by name, are not taken, or None."""
        if dtype in ("f32", "f16", "bf16"):
            return None
        return f"activations and results are f32, f16 or bf16, not {dtype}"

    @staticmethod
    def rows_of(x: Tensor, columns: int) -> tuple[Tensor, int, int]:
        """x with columns together, its number of rows, the elements between them; a copy only if strides ask.

        Raises ShapeError where x has other columns."""
        if x.size(-1) != columns:
            raise ShapeError(f"the input has {x.size(-1)} columns, the weight needs {columns}")
        rows = x.numel() // columns if columns else x.shape[:-1].numel()
        if x.is_contiguous():
            return x, rows, columns
        if x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= columns:
            return x, rows, x.stride(0)
        return x.contiguous(), rows, columns

    @staticmethod
    def span(ids: Tensor) -> str:
        """Least and largest id, for errors."""
        return f"{int(ids.min())} … {int(ids.max())}" if ids.numel() else "none"

    def _load(self) -> None:
        import torch  # noqa: F401  first: its OpenMP runtime must be the one that our library binds to

        suffix = {"win32": ".dll"}.get(sys.platform, ".so")
        resource = files(self.package) / "_native" / f"{self.stem}{suffix}"
        if not resource.is_file():
            self._reason = f"{self.dist} was installed without its native library; reinstall its wheel"
            return
        try:
            with as_file(resource) as path:
                library = ctypes.CDLL(str(path))
            self._type(library, self._signatures)
        except (OSError, AttributeError) as e:
            self._reason = f"the native library of {self.dist} does not load: {e}"
            return
        self._share_openmp(library)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._use_one_thread)
        self._library = library

    def _type(self, library: ctypes.CDLL, signatures: Signatures) -> None:
        for name, arguments in signatures.items():
            function = getattr(library, f"{self.prefix}_{name}")
            function.argtypes = list(arguments)
            function.restype = c_void_p if name == "openmp_address" else c_int

    def _use_one_thread(self) -> None:
        self._one_thread = True

    def _torch_threads(self) -> int:
        import torch

        self._count_threads = torch.get_num_threads
        return torch.get_num_threads()

    def _share_openmp(self, library: ctypes.CDLL) -> None:
        """Fall back to one thread when torch and the library bound different OpenMP runtimes.

        Two pools of spinning workers on the same cores turn 58 µs into 8 ms.
        """
        import torch

        name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
        try:
            torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
            theirs = ctypes.cast(torch_cpu.omp_get_max_threads, c_void_p).value
        except (OSError, AttributeError):
            return  # a torch without OpenMP, or built in one piece: nothing to fight with
        ours = getattr(library, f"{self.prefix}_openmp_address")()
        if ours == theirs:
            return
        self._use_one_thread()
        warnings.warn(
            f"two OpenMP runtimes are loaded: {_file_at(ours)} by {self.dist}, {_file_at(theirs)} by torch;"
            " native kernels run on one thread. Import torch before libraries that bring another OpenMP"
            " runtime.",
            RuntimeWarning,
            stacklevel=2,
        )


def _file_at(address: int | None) -> str:
    maps = Path("/proc/self/maps")
    if address is None or not maps.exists():
        return "an unknown file"
    for line in maps.read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        first, last = (int(part, 16) for part in span.split("-"))
        if first <= address < last:
            return path
    return "an unknown file"

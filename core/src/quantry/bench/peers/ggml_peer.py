"""llama.cpp's own matrix product: ggml through the libraries that llama-cpp-python ships."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from quantry.bench.peers.peer import Call, Peer, PeerWeight
from quantry.layout import Layout, Shape

__all__ = ["GgmlPeer"]

_CONTEXT_BYTES = 4 << 20  # descriptions of tensors and graphs; their data lies in buffers
_F32 = 0
_FOR_ACTIVATIONS = ("q8_1", "q8_k")  # no product with them as weights: a null function is called


class GgmlPeer(Peer):
    """One mul_mat a graph, weights in the plain buffer (ggml tiles some types from 8 rows) and repacked."""

    name, dist, modules, install = (
        "llama.cpp",
        "llama-cpp-python",
        ("llama_cpp",),
        "pip install llama-cpp-python",
    )

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """The block type of the layout's own name, as it lies in a file."""
        number = _number_of(layout)
        if number is None:
            return
        for variant, buffer_type in _buffer_types().items():
            if _supported(number, shape, buffer_type):
                yield PeerWeight(
                    variant, str(layout), "int8", "strict", "f32", "int8", layout.nbytes(shape),
                    functools.partial(_made, layout, number, shape, buffer_type, threads),
                )  # fmt: skip


def _number_of(layout: Layout) -> int | None:
    """ggml's number of the layout's block type, None where this ggml does not multiply by it."""
    number: int | None = getattr(getattr(layout, "ggml", None), "id", None)
    kind = str(layout).partition(":")[2]
    if number is None or kind in _FOR_ACTIVATIONS:
        return None
    name = (_ggml().ggml_type_name(number) or b"").decode(errors="replace")
    return number if name.casefold() == kind else None


def _made(
    layout: Layout, kind: int, shape: Shape, buffer_type: int, threads: int, count: int
) -> Callable[[int], Call]:
    return _Weights(layout, kind, shape, buffer_type, threads, count).at


_Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_SILENT = _Log(lambda level, text, data: None)


class _Parameters(ctypes.Structure):
    """ggml_init_params, ggml.h."""

    _fields_: ClassVar = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class _Weights:
    """Copies of a weight in buffers of one type."""

    def __init__(
        self, layout: Layout, kind: int, shape: Shape, buffer_type: int, threads: int, count: int
    ) -> None:
        g, (n, k) = _ggml(), shape
        self.columns, self.threads = k, threads
        self.context = _Context()
        self.tensors = [g.ggml_new_tensor_2d(self.context.address, kind, k, n) for _ in range(count)]
        self.context.allocate(buffer_type)
        blocks = layout.sample(shape)["blocks"]
        for tensor in self.tensors:
            g.ggml_backend_tensor_set(tensor, blocks.data_ptr(), 0, blocks.numel())

    def at(self, m: int) -> Call:
        """A graph for each copy; x and results are allocated once."""
        import torch

        g, k = _ggml(), self.columns
        context = _Context()
        x = g.ggml_new_tensor_2d(context.address, _F32, k, m)
        graphs = []
        for tensor in self.tensors:
            graphs.append(g.ggml_new_graph_custom(context.address, 4, False))
            g.ggml_build_forward_expand(graphs[-1], g.ggml_mul_mat(context.address, tensor, x))
        context.allocate(g.ggml_backend_cpu_buffer_type())
        values = torch.randn(m, k)
        g.ggml_backend_tensor_set(x, values.data_ptr(), 0, values.nbytes)
        g.ggml_backend_cpu_set_n_threads(_backend(), self.threads)
        compute, backend = g.ggml_backend_graph_compute, _backend()

        def call(i: int, _alive: object = (self, context)) -> None:
            compute(backend, graphs[i])

        return call


def _supported(kind: int, shape: Shape, buffer_type: int) -> bool:
    """Whether the buffer takes the type: one that repacks has no way to store others."""
    g, (n, k) = _ggml(), shape
    weight, trial = _Context(), _Context()
    tensor = g.ggml_new_tensor_2d(weight.address, kind, k, n)
    weight.allocate(buffer_type)
    x = g.ggml_new_tensor_2d(trial.address, _F32, k, 1)
    return bool(g.ggml_backend_supports_op(_backend(), g.ggml_mul_mat(trial.address, tensor, x)))


class _Context:
    """A ggml context and the buffer of its tensors, freed together."""

    def __init__(self) -> None:
        self.address = _ggml().ggml_init(_Parameters(_CONTEXT_BYTES, None, True))
        self.buffer: int | None = None

    def allocate(self, buffer_type: int) -> None:
        """Give every tensor made so far its place."""
        self.buffer = _ggml().ggml_backend_alloc_ctx_tensors_from_buft(self.address, buffer_type)
        if not self.buffer:
            raise MemoryError("ggml has no memory for these tensors")

    def __del__(self) -> None:
        if self.buffer:
            _ggml().ggml_backend_buffer_free(self.buffer)
        _ggml().ggml_free(self.address)


class _Ggml:
    """The functions used, typed, from whichever library has them."""

    _SIGNATURES: ClassVar[dict[str, tuple[Any, list[Any]]]] = {
        "ggml_log_set": (None, [_Log, c_void_p]),
        "ggml_type_name": (c_char_p, [c_int]),
        "ggml_init": (c_void_p, [_Parameters]),
        "ggml_free": (None, [c_void_p]),
        "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
        "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
        "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
        "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
        "ggml_backend_buffer_free": (None, [c_void_p]),
        "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
        "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
        "ggml_backend_supports_op": (c_bool, [c_void_p, c_void_p]),
        "ggml_backend_cpu_buffer_type": (c_void_p, []),
        "ggml_backend_buft_name": (c_char_p, [c_void_p]),
        "ggml_backend_get_device": (c_void_p, [c_void_p]),
        "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
        "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
        "ggml_backend_cpu_init": (c_void_p, []),
        "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    }

    def __init__(self, libraries: list[ctypes.CDLL]) -> None:
        for name, (result, arguments) in self._SIGNATURES.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


@functools.cache
def _ggml() -> Any:
    import torch  # noqa: F401  first: ggml's OpenMP runtime must be torch's

    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None  # why_not asked
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    prefix = "" if sys.platform == "win32" else "lib"
    names = ("ggml-base", "ggml-cpu")
    found: Any = _Ggml(
        [ctypes.CDLL(str(folder / f"{prefix}{name}{suffix}"), ctypes.RTLD_GLOBAL) for name in names]
    )
    found.ggml_log_set(_SILENT, None)
    return found


@functools.cache
def _backend() -> int:
    backend: int = _ggml().ggml_backend_cpu_init()
    return backend


@functools.cache
def _buffer_types() -> dict[str, int]:
    """The plain buffer, and those that the CPU backend offers beside it (repacked, AMX)."""
    g = _ggml()
    found: dict[str, int] = {"plain": g.ggml_backend_cpu_buffer_type()}
    device = g.ggml_backend_get_device(_backend())
    registered = g.ggml_backend_dev_backend_reg(device)
    address = g.ggml_backend_reg_get_proc_address(registered, b"ggml_backend_dev_get_extra_bufts")
    extras = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device) if address else None
    i = 0
    while extras and extras[i]:
        found[g.ggml_backend_buft_name(extras[i]).decode().removeprefix("CPU_").lower()] = extras[i]
        i += 1
    return found

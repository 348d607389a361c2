"""Reading safetensors: honest files, and one lie per error."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save, save_file

import quantry
from quantry import (
    DuplicateTensor,
    FormatError,
    HeaderError,
    MappedFile,
    OffsetError,
    PluginError,
    QuantryError,
    TruncatedFile,
    UsageError,
)
from quantry.safetensors_header import parse_header

TENSORS = {
    "model.embed_tokens.weight": torch.arange(12.0).view(4, 3),
    "model.layers.0.mlp.up_proj.weight": torch.arange(6.0).view(2, 3).bfloat16(),
    "model.layers.0.mlp.gate.weight": torch.ones(2, 3),
    "model.norm.weight": torch.ones(3, dtype=torch.float16),
    "model.layers.0.mlp.experts.gate_proj.weight": torch.zeros(2, 2, 3),
    "conv.weight": torch.zeros(2, 1, 3),
    "step": torch.tensor(3),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    return tmp_path


def sharded(folder, **changes):
    """Two shards and an index; changes: fields of the index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = list(TENSORS)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, held in parts.items():
        save_file({n: TENSORS[n] for n in held}, folder / file)
    size = sum(t.nbytes for t in TENSORS.values())
    weight_map = {n: file for file, held in parts.items() for n in held}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def raw(tmp_path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_every_tensor_is_a_dense_quantized_tensor(folder):
    ckpt = quantry.open(folder)
    assert ckpt.format.name == "safetensors"
    assert ckpt.architecture == "LlamaForCausalLM"
    assert set(ckpt.names()) == set(TENSORS)
    for name, want in TENSORS.items():
        got = ckpt[name]
        assert got.layout.family == "dense"
        assert got.buffers["weight"].dtype == want.dtype
        assert torch.equal(got.buffers["weight"], want)


def test_ops_follow_from_name_and_shape(folder):
    ops = {e.name: e.ops for e in quantry.open(folder).entries()}
    assert ops == {
        "model.embed_tokens.weight": ("embedding",),
        "model.layers.0.mlp.up_proj.weight": ("linear",),
        "model.layers.0.mlp.gate.weight": ("linear",),
        "model.norm.weight": (),
        "model.layers.0.mlp.experts.gate_proj.weight": ("experts",),
        "conv.weight": (),
        "step": (),
    }


def test_a_tied_embedding_is_a_head_too(folder):
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    assert quantry.open(folder).entry("model.embed_tokens.weight").ops == ("embedding", "linear")


@pytest.mark.parametrize("rows", [slice(1, 3), slice(None), slice(2, 2), slice(-1, None)])
def test_rows_are_read_alone(folder, rows):
    ckpt = quantry.open(folder)
    name = "model.embed_tokens.weight"
    assert torch.equal(ckpt.load(name, rows).dequantize(), TENSORS[name][rows])


def test_rows_of_a_scalar_or_with_a_step_are_refused(folder):
    ckpt = quantry.open(folder)
    with pytest.raises(UsageError, match="no rows"):
        ckpt.load("step", slice(0, 1))
    with pytest.raises(UsageError, match="step 1"):
        ckpt.load("conv.weight", slice(0, 2, 2))


def test_a_single_file_without_config_opens(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path)
    ckpt = quantry.open(path)
    assert len(ckpt) == len(TENSORS)
    assert ckpt.config == {}
    assert ckpt.architecture is None


def test_bool_reads_as_bytes(tmp_path):
    save_file({"mask": torch.tensor([True, False])}, tmp_path / "x.safetensors")
    assert quantry.open(tmp_path)["mask"].buffers["weight"].tolist() == [1, 0]


def test_shards_are_read_through_their_index(folder):
    sharded(folder)
    ckpt = quantry.open(folder)
    assert all(torch.equal(ckpt[n].buffers["weight"], t) for n, t in TENSORS.items())
    assert quantry.verify(folder, strict=True) == []


def test_every_missing_shard_is_named(folder):
    sharded(folder)
    (folder / "a.safetensors").unlink()
    (folder / "b.safetensors").unlink()
    with pytest.raises(FormatError, match=r"a\.safetensors, b\.safetensors"):
        quantry.open(folder)


def test_an_index_cannot_leave_its_folder(folder):
    weight_map = sharded(folder)
    (folder / "sub").mkdir()
    inner = dict.fromkeys(weight_map, "../a.safetensors")
    (folder / "sub" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": inner}))
    with pytest.raises(FormatError, match="do not exist"):
        quantry.open(folder / "sub")


def test_a_tensor_that_only_the_index_knows_is_named(folder):
    weight_map = sharded(folder)
    sharded(folder, weight_map=weight_map | {"ghost": "a.safetensors"})
    with pytest.raises(FormatError) as e:
        quantry.open(folder)
    assert e.value.tensor == "ghost"


def test_a_tensor_in_two_shards_is_named(folder):
    sharded(folder)
    save_file(
        {"step": TENSORS["step"]} | {n: TENSORS[n] for n in list(TENSORS)[:3]}, folder / "a.safetensors"
    )
    with pytest.raises(DuplicateTensor, match=r"a\.safetensors") as e:
        quantry.open(folder)
    assert e.value.tensor == "step"


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": []}', "{", '"\\ud800"']
)
def test_a_malformed_index_is_a_header_error(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(HeaderError):
        quantry.open(tmp_path)


def test_a_stale_index_is_a_strict_problem(folder):
    weight_map = sharded(folder)
    del weight_map["step"]
    sharded(folder, weight_map=weight_map, metadata={"total_size": 1})
    assert quantry.verify(folder) == []
    assert {p.tensor for p in quantry.verify(folder, strict=True)} == {"step", ""}


def test_a_quantized_checkpoint_names_the_plugin_that_is_missing(folder, toys):
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PluginError, match="gptq") as e:
        quantry.open(folder)
    assert "quantry-gptq" in e.value.hint


def test_float8_without_a_method_names_the_plugin(tmp_path):
    save_file({"w": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(PluginError) as e:
        quantry.open(tmp_path)
    assert "quantry-fp8" in e.value.hint
    assert e.value.tensor == "w"


@pytest.mark.parametrize(
    ("header", "data", "error", "tensor"),
    [
        (b"[]", b"", HeaderError, None),
        (b"{", b"", HeaderError, None),
        (b'{"a": NaN}', b"", HeaderError, None),
        (b'{"\xff": 1}', b"", HeaderError, None),
        (b'{"\\ud800": 1}', b"", HeaderError, None),
        (b'{"a":' * 100_000, b"", HeaderError, None),
        (b'{"a":[1' + b"0" * 9999 + b"]}", b"", HeaderError, None),
        (b'{"a":1,"a":2}', b"", DuplicateTensor, "a"),
        ({"__metadata__": {"a": 1}}, b"", HeaderError, None),
        ({"__metadata__": []}, b"", HeaderError, None),
        ({"t": 1}, b"", HeaderError, "t"),
        ({"t": {"dtype": "F32"}}, b"", HeaderError, "t"),
        ({"t": entry() | {"more": 1}}, bytes(4), HeaderError, "t"),
        ({"t": entry(dtype="F7")}, bytes(4), HeaderError, "t"),
        ({"t": entry(dtype=["F32"])}, bytes(4), HeaderError, "t"),
        ({"t": entry(shape=(-1,))}, bytes(4), HeaderError, "t"),
        ({"t": entry(shape=(1.0,))}, bytes(4), HeaderError, "t"),
        ({"t": entry(shape=(True,))}, bytes(4), HeaderError, "t"),
        ({"t": entry(shape=(2**62, 2**62, 0))}, b"", HeaderError, "t"),
        ({"t": entry(shape=(2,))}, bytes(4), HeaderError, "t"),
        ({"t": entry(offsets=(4, 0))}, bytes(4), HeaderError, "t"),
        ({"t": entry(offsets=(0,))}, bytes(4), HeaderError, "t"),
        ({"t": entry(offsets=(0, 4, 8))}, bytes(8), HeaderError, "t"),
        ({"t": entry()}, bytes(3), TruncatedFile, "t"),
        ({"t": entry()}, bytes(5), OffsetError, None),
        ({"t": entry(offsets=(4, 8))}, bytes(8), OffsetError, "t"),
        ({"t": entry(), "u": entry()}, bytes(4), OffsetError, "u"),
        ({"t": entry(), "u": entry(offsets=(2, 6))}, bytes(6), OffsetError, "u"),
    ],
)
def test_each_lie_of_a_header_has_its_error(tmp_path, header, data, error, tensor):
    path = raw(tmp_path, header, data)
    with pytest.raises(error) as e:
        parse_header(MappedFile(path))
    assert e.value.file == str(path)
    assert e.value.tensor == tensor


@pytest.mark.parametrize("content", [b"", b"1234567", (1000).to_bytes(8, "little") + b"{}", b"\xff" * 20])
def test_a_file_without_a_whole_header_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as e:
        quantry.open(path)
    assert e.value.file == str(path)


def test_an_empty_file_of_no_tensors_is_sound(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(save({}))
    assert quantry.open(tmp_path).names() == []


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.integers(0, 40),
)
def test_mutated_files_raise_quantry_errors_only(tmp_path, changes, cut):
    content = bytearray(save(TENSORS, {"a": "b"}))
    for place, value in changes:
        content[int(place * 700)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: len(content) - cut])
    with contextlib.suppress(QuantryError):
        ckpt = quantry.open(path)
        for name in ckpt:
            ckpt[name].dequantize()

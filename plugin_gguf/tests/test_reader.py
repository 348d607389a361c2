"""The reader against the `gguf` package: what its writer writes, and what its reader reads."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from ggml_samples import HALVES
from gguf.scripts.gguf_convert_endian import byteswap_tensors
from gguf_files import ARCH, ARRAY, FORMAT, STRING, T, array, finish, gguf_bytes, kv, open_gguf, text

from quantry import Dense, HeaderError, ShapeError, Source, UsageError
from quantry_gguf.arrays import NumberArray, StringArray
from quantry_gguf.layout import GgmlBlocks
from quantry_gguf.scales import swap_blocks
from quantry_gguf.types import BY_ID, BY_NAME, TYPES

Type = gguf.GGMLQuantizationType
Value = gguf.GGUFValueType
RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((3, 512)).astype(np.float32)
ENCODED = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.TQ1_0, Type.TQ2_0, Type.MXFP4]
NAMED = {  # as llama.cpp names them
    "token_embd.weight": (8, 64),
    "position_embd.weight": (8, 64),
    "output_norm.weight": (64,),
    "rope_freqs.weight": (32,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_q.bias": (64,),
    "blk.0.attn_q_norm.weight": (4, 16),
    "blk.0.ssm_conv1d.weight": (64, 4),
    "blk.0.ffn_gate_inp.weight": (4, 64),
    "blk.0.ffn_down_exps.weight": (4, 64, 64),
    "blk.0.ffn_down_exps.bias": (4, 64),
    "v.patch_embd.weight": (8, 3, 4, 4),
}
SHAPES = [(64,), (3, 64), (2, 3, 64), (2, 2, 3, 64), (0, 64), (3, 0), (2, 0, 64), (0,)]
SCALARS = {
    "u8": (255, Value.UINT8),
    "i8": (-128, Value.INT8),
    "u16": (65535, Value.UINT16),
    "i16": (-32768, Value.INT16),
    "u32": (2**32 - 1, Value.UINT32),
    "i32": (-(2**31), Value.INT32),
    "f32": (0.15625, Value.FLOAT32),
    "u64": (2**64 - 1, Value.UINT64),
    "i64": (-(2**63), Value.INT64),
    "f64": (0.1, Value.FLOAT64),
    "bool": (True, Value.BOOL),
    "string": ("Grüße, 世界", Value.STRING),
}


def writer(path: Path, **options: object) -> gguf.GGUFWriter:
    return gguf.GGUFWriter(path, "llama", **options)


def raw_rows(ggml: gguf.GGMLQuantizationType, rows: int = 3, columns: int = 512) -> np.ndarray:
    """Bytes below 0x40: every half and every exponent byte is finite."""
    block, size = gguf.GGML_QUANT_SIZES[ggml]
    return RNG.integers(0, 0x40, (rows, columns // block * size), np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


class TestValues:
    @pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
    def test_every_scalar_type(self, path: Path, endianess: gguf.GGUFEndian) -> None:
        w = writer(path, endianess=endianess)
        for key, (value, kind) in SCALARS.items():
            w.add_key_value(key, value, kind)
        finish(w)
        config = open_gguf(path).config
        assert {key: config[key] for key in SCALARS} == {key: value for key, (value, _) in SCALARS.items()}
        assert all(type(config[key]) is type(value) for key, (value, _) in SCALARS.items())
        assert config["general.architecture"] == "llama"
        assert open_gguf(path).architecture == "llama"

    @pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
    @pytest.mark.parametrize("count", [3, 5000])
    def test_arrays_of_every_type(self, path: Path, endianess: gguf.GGUFEndian, count: int) -> None:
        arrays = {key: [value] * (count - 1) + [type(value)()] for key, (value, _) in SCALARS.items()}
        w = writer(path, endianess=endianess)
        for key, values in arrays.items():
            w.add_key_value(key, values, Value.ARRAY, sub_type=SCALARS[key][1])
        finish(w)
        config = open_gguf(path).config
        for key, values in arrays.items():
            assert config[key] == values
            assert list(config[key]) == values
            assert (config[key][0], config[key][-1], config[key][1:3]) == (values[0], values[-1], values[1:3])
            assert len(config[key]) == count

    def test_short_arrays_are_lists_and_long_ones_lazy(self, path: Path) -> None:
        w = writer(path)
        w.add_array("short", ["a", "b"])
        w.add_array("tokens", [f"t{i}" for i in range(3000)])
        w.add_array("scores", [0.5] * 3000)
        finish(w)
        config = open_gguf(path).config
        assert config["short"] == ["a", "b"]
        assert isinstance(config["short"], list)
        tokens = config["tokens"]
        assert isinstance(tokens, StringArray)
        assert isinstance(config["scores"], NumberArray)
        assert (tokens[2999], tokens[-3000], tokens.raw(-1), tokens.index("t17")) == (
            "t2999",
            "t0",
            b"t2999",
            17,
        )
        assert tokens != [*tokens.tolist()[:-1], "x"]
        with pytest.raises(IndexError):
            tokens[3000]

    def test_tokens_that_are_not_utf8_are_readable_as_bytes_and_refused_as_text(self, path: Path) -> None:
        elements = text(b"ok") + text(b"\xff\x00")
        path.write_bytes(gguf_bytes((ARCH, kv("tokens", ARRAY, array(STRING, 2, elements)))))
        tokens = open_gguf(path).config["tokens"]
        assert tokens[0] == "ok"
        assert tokens.raw(1) == b"\xff\x00"
        for read in (lambda: tokens[1], tokens.tolist):
            with pytest.raises(HeaderError, match=r"key 'tokens': string 1 is not UTF-8"):
                read()

    def test_a_bool_of_any_nonzero_byte_is_true(self, path: Path) -> None:
        path.write_bytes(gguf_bytes((kv("b", 7, b"\x02"), kv("a", ARRAY, array(7, 2, b"\x80\x00")))))
        config = open_gguf(path).config
        assert config["b"] is True
        assert config["a"] == [True, False]

    def test_version_2_is_read_like_3(self, path: Path) -> None:
        path.write_bytes(gguf_bytes(version=2))
        assert open_gguf(path).architecture == "llama"

    def test_a_file_without_values_and_tensors_is_legal(self, path: Path) -> None:
        path.write_bytes(gguf_bytes(()))
        checkpoint = open_gguf(path)
        assert (len(checkpoint), dict(checkpoint.config), checkpoint.architecture) == (0, {}, None)


class TestTensors:
    @pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
    def test_all_types_agree_with_gguf_reader(self, path: Path, alignment: int) -> None:
        w = writer(path)
        w.add_custom_alignment(alignment)
        for kind in (np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64):
            w.add_tensor(f"{np.dtype(kind).name}.weight", (FLOATS * 9).astype(kind))
        w.add_tensor("bf16.weight", gguf.quants.quantize(FLOATS, Type.BF16), raw_dtype=Type.BF16)
        for t in ENCODED:
            w.add_tensor(f"{t.name}.weight", gguf.quants.quantize(FLOATS, t), raw_dtype=t)
        others = [t for t in Type if t not in ENCODED and t.value in BY_ID and not BY_ID[t.value].is_dense]
        for t in others:
            if t is not Type.Q8_1:  # the package has an old size for it
                w.add_tensor(f"{t.name}.weight", raw_rows(t), raw_dtype=t)
        finish(w)
        checkpoint = open_gguf(path)
        expected = gguf.GGUFReader(path).tensors
        assert checkpoint.names() == [t.name for t in expected]
        for t in expected:
            qt = checkpoint[t.name]
            (buffer,) = qt.buffers.values()
            name = t.tensor_type.name.lower()
            assert qt.layout == (Dense(name) if BY_NAME[name].is_dense else GgmlBlocks(name))
            assert qt.shape == tuple(reversed(t.shape.tolist()))
            assert buffer.reshape(-1).view(torch.uint8).numpy().tobytes() == t.data.tobytes()
            if t.tensor_type in ENCODED:
                assert np.array_equal(qt.dequantize().numpy(), gguf.quants.dequantize(t.data, t.tensor_type))

    @pytest.mark.parametrize("ggml", TYPES, ids=lambda t: t.name)
    def test_each_type_of_the_table_loads(self, path: Path, ggml: object) -> None:
        data = bytes(range(64)) * (2 * ggml.block_bytes)
        data = data[: 6 * ggml.block_bytes]
        path.write_bytes(gguf_bytes(tensors=(T("t.weight", (2 * ggml.block, 3), ggml.id, data),)))
        qt = open_gguf(path)["t.weight"]
        (buffer,) = qt.buffers.values()
        assert qt.shape == (3, 2 * ggml.block)
        assert buffer.view(torch.uint8).numpy().tobytes() == data

    @pytest.mark.parametrize(("ggml", "shape"), [("f32", ()), *itertools.product(("f32", "q8_0"), SHAPES)])
    def test_ranks_and_empty_dimensions(self, path: Path, ggml: str, shape: tuple[int, ...]) -> None:
        t = BY_NAME[ggml]
        data = bytes(int(np.prod(shape)) // t.block * t.block_bytes)
        path.write_bytes(
            gguf_bytes(tensors=(T("a.weight", shape[::-1], t.id, data), T("b", (1,), 0, b"abcd")))
        )
        checkpoint = open_gguf(path)
        assert checkpoint["a.weight"].shape == shape
        assert checkpoint["a.weight"].nbytes == len(data)
        assert checkpoint["a.weight"].dequantize().shape == shape
        assert list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True)) == []

    def test_buffers_are_views_of_the_mapped_file(self, path: Path) -> None:
        w = writer(path)
        w.add_tensor("a.weight", FLOATS)
        finish(w)
        checkpoint = open_gguf(path)
        first, second = checkpoint["a.weight"], checkpoint["a.weight"]
        assert first.buffers["weight"].data_ptr() == second.buffers["weight"].data_ptr()

    def test_gaps_and_another_order_are_read_and_reported_by_strict_verify(self, path: Path) -> None:
        first, second = bytes([1] * 128), bytes([2] * 128)
        tensors = (T("a", (32,), 0, second, offset=256), T("b", (32,), 0, first, offset=0))
        raw = gguf_bytes(tensors=tensors)
        path.write_bytes(raw[:-256] + first + bytes([7] * 128) + second)
        checkpoint = open_gguf(path)
        assert checkpoint["a"].buffers["weight"].view(torch.uint8).unique().tolist() == [2]
        problems = list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True))
        assert {tensor for _, tensor, _ in problems} == {"a", "b"}
        assert any("packed order" in p for _, _, p in problems)
        assert any("padding" in p and "not zero" in p for _, _, p in problems)
        assert list(FORMAT.verify(checkpoint.source, checkpoint.detection)) == []


class TestRows:
    @pytest.mark.parametrize("shape", [(5, 64), (5, 3, 64)])
    def test_rows_are_a_slice_of_dimension_0(self, path: Path, shape: tuple[int, ...]) -> None:
        values = RNG.standard_normal(shape).astype(np.float32)
        w = writer(path)
        w.add_tensor("a.weight", values)
        w.add_tensor("b.weight", gguf.quants.quantize(values, Type.Q8_0), raw_dtype=Type.Q8_0)
        finish(w)
        checkpoint = open_gguf(path)
        for name in ("a.weight", "b.weight"):
            whole = checkpoint[name].dequantize()
            for rows in (
                slice(1, 3),
                slice(None, 2),
                slice(-2, None),
                slice(2, 2),
                slice(3, 1),
                slice(0, 99),
            ):
                assert torch.equal(checkpoint.load(name, rows).dequantize(), whole[rows])

    def test_a_vector_is_cut_at_blocks_only(self, path: Path) -> None:
        w = writer(path)
        w.add_tensor("v", gguf.quants.quantize(FLOATS[:1], Type.Q8_0)[0], raw_dtype=Type.Q8_0)
        finish(w)
        checkpoint = open_gguf(path)
        assert torch.equal(
            checkpoint.load("v", slice(32, 96)).dequantize(), checkpoint["v"].dequantize()[32:96]
        )
        with pytest.raises(ShapeError, match="multiples of 32"):
            checkpoint.load("v", slice(16, 64))

    def test_a_step_is_refused(self, path: Path) -> None:
        path.write_bytes(gguf_bytes(tensors=(T("a", (32, 2), 0, bytes(256)), T("s", (), 0, bytes(4)))))
        with pytest.raises(UsageError, match="step 1 only"):
            open_gguf(path).load("a", slice(0, 2, 2))
        with pytest.raises(UsageError, match="no rows"):
            open_gguf(path).load("s", slice(0, 1))


class TestOps:
    def ops(self, path: Path, *more: str) -> dict[str, tuple[str, ...]]:
        shapes = {**NAMED, **dict.fromkeys(more, (8, 64))}
        path.write_bytes(
            gguf_bytes(tensors=tuple(T(n, s[::-1], 0, bytes(4 * int(np.prod(s)))) for n, s in shapes.items()))
        )
        return {e.name: e.ops for e in open_gguf(path).entries() if e.ops}

    def test_a_tied_embedding_is_a_linear_too(self, path: Path) -> None:
        assert self.ops(path) == {
            "token_embd.weight": ("embedding", "linear"),
            "position_embd.weight": ("embedding",),
            "blk.0.attn_q.weight": ("linear",),
            "blk.0.ffn_gate_inp.weight": ("linear",),
            "blk.0.ffn_down_exps.weight": ("experts",),
        }

    def test_an_output_matrix_unties_it(self, path: Path) -> None:
        ops = self.ops(path, "output.weight")
        assert (ops["token_embd.weight"], ops["output.weight"]) == (("embedding",), ("linear",))


class TestBigEndian:
    def test_plain_types_equal_the_little_endian_file(self, tmp_path: Path) -> None:
        checkpoints = []
        for endianess in gguf.GGUFEndian:
            path = tmp_path / f"{endianess.name}.gguf"
            w = writer(path, endianess=endianess)
            for kind in (np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64):
                w.add_tensor(np.dtype(kind).name, (FLOATS * 9).astype(kind))
            finish(w)
            checkpoints.append(open_gguf(path))
        little, big = checkpoints
        assert big.detection.facts["parts"][0].header.byteorder == "big"
        for name in little:
            assert torch.equal(little[name].buffers["weight"], big[name].buffers["weight"])
            rows = slice(1, 3)
            assert torch.equal(little.load(name, rows).dequantize(), big.load(name, rows).dequantize())

    @pytest.mark.parametrize("ggml", list(byteswap_tensors), ids=lambda t: t.name)
    def test_blocks_are_swapped_as_gguf_convert_endian_does(self, path: Path, ggml: object) -> None:
        class Holder:
            data = raw_rows(ggml).reshape(-1)

        little = Holder.data.copy()
        size = gguf.GGML_QUANT_SIZES[ggml][1]
        for at in range(0, len(little), size):
            byteswap_tensors[ggml](Holder, at)
        w = writer(path, endianess=gguf.GGUFEndian.BIG)
        w.add_tensor("a.weight", Holder.data.reshape(3, -1), raw_dtype=ggml)
        finish(w)
        assert open_gguf(path)["a.weight"].buffers["blocks"].numpy().tobytes() == little.tobytes()

    @pytest.mark.parametrize("ggml", [t for t in TYPES if not t.is_dense], ids=lambda t: t.name)
    def test_swapping_reverses_the_halves_and_undoes_itself(self, ggml: object) -> None:
        blocks = torch.from_numpy(RNG.integers(0, 256, (5, 3 * ggml.block_bytes), np.uint8))
        swapped = swap_blocks(ggml.name, blocks)
        assert torch.equal(swap_blocks(ggml.name, swapped), blocks)
        for at in HALVES.get(ggml.name, ()):
            before, after = (b.view(-1, ggml.block_bytes)[:, at : at + 2] for b in (blocks, swapped))
            assert torch.equal(before, after.flip(1))

    def test_q5_keeps_its_high_bits(self, path: Path) -> None:
        packed = gguf.quants.quantize(FLOATS, Type.Q5_0).reshape(-1, 22)
        native = packed.copy()  # as a big-endian host stores `block_q5_0`: half d, u32 qh, bytes qs
        native[:, :2] = packed[:, 1::-1]
        native[:, 2:6] = packed[:, 5:1:-1]
        w = writer(path, endianess=gguf.GGUFEndian.BIG)
        w.add_tensor("a.weight", native.reshape(3, -1), raw_dtype=Type.Q5_0)
        finish(w)
        expected = gguf.quants.dequantize(packed.reshape(3, -1), Type.Q5_0)
        assert np.array_equal(open_gguf(path)["a.weight"].dequantize().numpy(), expected)


class TestDetect:
    def test_a_file_without_suffix_is_known_by_its_magic(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_bytes(gguf_bytes())
        detection = FORMAT.detect(Source.open(tmp_path / "model"))
        assert detection is not None
        assert detection.confidence == 100

    @pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04", b"{}"])
    def test_other_files_are_not_ours(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "model.bin").write_bytes(content)
        assert FORMAT.detect(Source.open(tmp_path / "model.bin")) is None
        assert FORMAT.detect(Source.open(tmp_path)) is None

    def test_importing_the_reader_imports_no_torch(self) -> None:
        code = "import sys, quantry_gguf.reader; assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
        subprocess.run([sys.executable, "-c", code], check=True)

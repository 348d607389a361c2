"""`quantry convert gguf`: bytes against libgguf (llama.cpp's C code), files against the gguf package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import libgguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from gguf_files import open_gguf
from gguf_models import MODELS, Synthetic, importance_of, in_order, write_model

import quantry
from quantry import UsageError
from quantry.cli import cli
from quantry_gguf import convert
from quantry_gguf.convert import Converted, convert_gguf
from quantry_gguf.mixes import file_type
from quantry_gguf.tensor_types import TypeOptions
from quantry_gguf.types import BY_NAME

LLAMA = MODELS["llama of groups of 4"]
EXPERTS = MODELS["mixtral, 8 experts"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "in.gguf", LLAMA)


def converted(source: Path, type: str, **options: Any) -> Converted:
    return convert_gguf(source, source.with_name("out.gguf"), TypeOptions(file_type(type)), **options)


def arrays(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def bytes_of(path: Path) -> dict[str, bytes]:
    return {name: t.data.tobytes() for name, t in arrays(path).items()}


def imatrix(path: Path, model: Synthetic) -> Path:
    """A GGUF file of importance for every matrix of the layers."""
    weights = {
        name: torch.from_numpy(values).view(-1, model.tensors[name][-1]).squeeze(0)
        for name, values in importance_of(model).items()
    }
    quantry.write_importance(path, quantry.Importance(weights, chunks=4, chunk_tokens=8, datasets=("a.txt",)))
    return path


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "Q2_K", "Q8_0", "Q3_K_L", "IQ3_M"])
def test_bytes_are_those_of_llama_cpps_encoders(tmp_path: Path, type: str, dtype: str) -> None:
    source = write_model(tmp_path / "in.gguf", LLAMA, dtype)
    plain, made = arrays(source), arrays(converted(source, type).output)
    assert list(made) == in_order(LLAMA)
    for name, tensor in made.items():
        before = plain[name]
        wide = gguf.quants.dequantize(before.data, before.tensor_type)
        if len(LLAMA.tensors[name]) < 2:
            assert tensor.data.tobytes() == before.data.tobytes()
        else:
            expected = libgguf.quantize_rows(np.ascontiguousarray(wide), tensor.tensor_type.value)
            np.testing.assert_array_equal(tensor.data, expected, err_msg=name)


def test_importance_weighs_each_expert_by_its_own_columns(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", EXPERTS)
    found = converted(source, "Q4_K_M", imatrix=imatrix(tmp_path / "imatrix.gguf", EXPERTS))
    plain, made, weights = arrays(source), arrays(found.output), importance_of(EXPERTS)
    name = "blk.3.ffn_up_exps.weight"
    for expert in range(8):
        importance = weights[name].reshape(8, -1)[expert]
        kind = made[name].tensor_type.value
        expected = libgguf.quantize_rows(np.ascontiguousarray(plain[name].data[expert]), kind, importance)
        np.testing.assert_array_equal(made[name].data[expert], expected)
    head = libgguf.quantize_rows(plain["output.weight"].data, made["output.weight"].tensor_type.value)
    np.testing.assert_array_equal(made["output.weight"].data, head)


def test_flat_importance_of_older_files_is_divided_among_the_experts(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", EXPERTS)
    options = TypeOptions(file_type("IQ3_XXS"))
    importance = quantry.read_importance(imatrix(tmp_path / "a.gguf", EXPERTS))
    quantry.write_importance(tmp_path / "a.imatrix", importance)
    for suffix in ("gguf", "imatrix"):
        convert_gguf(source, tmp_path / f"{suffix}.gguf", options, imatrix=tmp_path / f"a.{suffix}")
    one, other = (bytes_of(tmp_path / f"{suffix}.gguf") for suffix in ("gguf", "imatrix"))
    same = sum(one[name] == other[name] for name in one)
    assert same >= len(one) - 2, "means · calls / calls may round differently"


@pytest.mark.parametrize("type", ["F16", "BF16", "F32"])
def test_casts_are_those_of_the_gguf_package(source: Path, type: str) -> None:
    plain, made = arrays(source), arrays(converted(source, type).output)
    for name, tensor in made.items():
        if len(LLAMA.tensors[name]) > 1:
            expected = gguf.quants.quantize(plain[name].data, gguf.GGMLQuantizationType[type])
            assert tensor.data.tobytes() == expected.tobytes(), name
        else:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32


def test_key_values_are_copied_with_their_types(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    w.add_uint32("llama.block_count", 1)
    w.add_uint64("a", 7)
    w.add_int8("b", -7)
    w.add_float64("c", 0.1)
    w.add_array("d", [1, 2, 3])
    w.add_array("e", ["x", "", "é"])
    w.add_array("f", [0.5, 1.5])
    w.add_array("g", [True, False])
    w.add_array("long", list(range(5000)))
    w.add_array("tokens", [f"t{i}" for i in range(5000)])
    w.add_uint32("general.file_type", 0)
    w.add_tensor("blk.0.ffn_up.weight", np.ones((2, 256), np.float32))
    for write in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
        write()
    converted(tmp_path / "in.gguf", "Q4_K_M")
    before, after = (gguf.GGUFReader(tmp_path / name).fields for name in ("in.gguf", "out.gguf"))
    changed = {"general.file_type", "general.quantization_version", "GGUF.kv_count"}
    for key in before.keys() - changed:
        assert before[key].types == after[key].types
        assert before[key].contents() == after[key].contents(), key
    assert after["general.file_type"].contents() == 15
    assert after["general.quantization_version"].contents() == 2


def test_strings_that_are_no_utf8_are_copied(tmp_path: Path) -> None:
    from gguf_files import ARCH, ARRAY, STRING, U32, T, array, gguf_bytes, kv, text, u32

    tokens = kv("tokenizer.ggml.tokens", ARRAY, array(STRING, 2, text(b"\xff\xfe") + text("ok")))
    blocks = kv("llama.block_count", U32, u32(1))
    weight = T("blk.0.ffn_up.weight", (32, 2), data=np.ones(64, np.float32).tobytes())
    (tmp_path / "in.gguf").write_bytes(gguf_bytes((ARCH, tokens, blocks), (weight,)))
    assert tokens in converted(tmp_path / "in.gguf", "Q8_0").output.read_bytes()


def test_a_file_of_the_other_byte_order_gives_the_same(tmp_path: Path) -> None:
    made = []
    for order in (gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG):
        path = tmp_path / f"{order.name}.gguf"
        w = gguf.GGUFWriter(path, "llama", endianess=order)
        w.add_uint32("llama.block_count", 1)
        w.add_array("numbers", list(range(2000)))
        w.add_array("texts", [str(i) for i in range(2000)])
        w.add_tensor("blk.0.ffn_up.weight", np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256))
        for write in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
            write()
        made.append(converted(path, "Q4_K_M").output.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 3000, 8 << 20])
def test_bytes_do_not_depend_on_workers_and_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, block: int
) -> None:
    source = write_model(tmp_path / "in.gguf", EXPERTS)
    weights = imatrix(tmp_path / "imatrix.gguf", EXPERTS)
    expected = converted(source, "IQ4_XS", imatrix=weights, jobs=1).output.read_bytes()
    monkeypatch.setattr(convert, "_BLOCK_BYTES", block)
    assert converted(source, "IQ4_XS", imatrix=weights, jobs=jobs).output.read_bytes() == expected


def test_our_verify_finds_nothing(source: Path) -> None:
    output = converted(source, "Q4_K_M").output
    assert quantry.verify(output, strict=True) == []


def test_tensors_of_the_wanted_type_are_copied(source: Path) -> None:
    once = converted(source, "Q4_K_M").output.rename(source.with_name("packed.gguf"))
    assert bytes_of(converted(once, "Q4_K_M").output) == bytes_of(once)


def test_packed_tensors_are_packed_anew_only_when_asked(source: Path) -> None:
    once = converted(source, "Q4_K_M").output.rename(source.with_name("packed.gguf"))
    with pytest.raises(UsageError) as e:
        converted(once, "Q5_K_M")
    assert e.value.tensor == "token_embd.weight"
    assert e.value.problem == "is ggml:q4_k already and would become q5_k"
    plain, made = arrays(once), arrays(converted(once, "Q5_K_M", requantize=True).output)
    name = "blk.2.ffn_gate.weight"
    wide = gguf.quants.dequantize(plain[name].data, plain[name].tensor_type)
    expected = libgguf.quantize_rows(wide, BY_NAME["q5_k"].id)
    np.testing.assert_array_equal(made[name].data, expected)


def test_parts_of_a_split_model_become_one_file(tmp_path: Path) -> None:
    names = list(LLAMA.tensors)
    for no, part in enumerate((names[:30], names[30:])):
        w = gguf.GGUFWriter(tmp_path / f"m-{no + 1:05}-of-00002.gguf", "llama")
        for key, value in list(LLAMA.config.items())[1:]:
            (w.add_float32 if isinstance(value, float) else w.add_uint32)(key, value)
        w.add_uint16("split.no", no)
        w.add_uint16("split.count", 2)
        w.add_int32("split.tensors.count", len(names))
        for name in part:
            w.add_tensor(name, np.ones(LLAMA.tensors[name], np.float32))
        for write in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
            write()
    output = converted(tmp_path / "m-00001-of-00002.gguf", "Q8_0").output
    assert list(arrays(output)) == in_order(LLAMA)
    assert not any(key.startswith("split.") for key in open_gguf(output).config)


def test_importance_in_the_folder_of_a_model_is_no_second_model(source: Path) -> None:
    imatrix(source.with_name("imatrix.gguf"), LLAMA)
    assert quantry.open(source.parent).source.file("in.gguf").path == source
    assert len(quantry.open(source.parent)) == len(LLAMA.tensors)


def test_the_importance_is_named_in_the_metadata(source: Path) -> None:
    weights = imatrix(source.with_name("imatrix.gguf"), LLAMA)
    config = open_gguf(converted(source, "IQ2_M", imatrix=weights).output).config
    assert {k: v for k, v in config.items() if k.startswith("quantize.")} == {
        "quantize.imatrix.file": "imatrix.gguf", "quantize.imatrix.dataset": "a.txt",
        "quantize.imatrix.entries_count": 56, "quantize.imatrix.chunks_count": 4,
    }  # fmt: skip


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["convert", "gguf", *args], prog_name="quantry")


class TestCommand:
    def test_json_has_the_keys_of_the_contract(self, source: Path) -> None:
        out = source.with_name("out.gguf")
        document = json.loads(run(str(source), "-o", str(out), "--type", "q4_k_m", "--json").stdout)
        assert document["output"] == str(out)
        assert document["bytes"] == out.stat().st_size
        made = arrays(out)
        assert document["tensors"] == len(made)
        bits = 8 * sum(t.n_bytes for t in made.values()) / sum(t.n_elements for t in made.values())
        assert document["bits_per_weight"] == pytest.approx(float(bits))
        assert document["types"] == {"f32": 17, "q4_k": 49, "q6_k": 9}
        assert document["fallbacks"] == []
        assert document["seconds"] > 0
        assert document["peak_rss_bytes"] > 0

    def test_a_dry_run_knows_the_size_and_writes_nothing(self, source: Path) -> None:
        args = [str(source), "-o", str(source.with_name("out.gguf")), "--type", "IQ4_XS", "--json"]
        planned = json.loads(run(*args, "--dry-run").stdout)
        assert [p.name for p in source.parent.iterdir()] == ["in.gguf"]
        done = json.loads(run(*args).stdout)
        for key in ("bytes", "types", "bits_per_weight", "tensors"):
            assert planned[key] == done[key]

    def test_options_of_types_reach_the_file(self, source: Path) -> None:
        out = source.with_name("out.gguf")
        options = (
            "--tensor-type",
            "ffn_down=Q8_0",
            "--output-type",
            "q5_0",
            "--token-embedding-type",
            "q4_1",
        )
        assert run(str(source), "-o", str(out), "--type", "Q4_K_S", "--pure", *options).exit_code == 0
        types = {name: t.tensor_type.name for name, t in arrays(out).items()}
        assert types["blk.0.ffn_down.weight"] == "Q8_0"
        assert types["blk.0.attn_v.weight"] == "Q4_K", "pure: no rule"
        assert (types["output.weight"], types["token_embd.weight"]) == ("Q5_0", "Q4_1")

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--type", "Q4_X"], "no GGUF file type 'Q4_X'"),
            (["--type", "Q4_0", "--tensor-type", "ffn"], "--tensor-type 'ffn' has no '='"),
            (["--type", "Q4_0", "--tensor-type", "=q4_0"], "has no '='"),
            (["--type", "Q4_0", "--tensor-type", "(=q4_0"], "'(' is no regular expression"),
            (["--type", "Q4_0", "--tensor-type", "a=q9"], "no tensor type 'q9'"),
            (["--type", "Q4_0", "--output-type", "i8"], "no tensor type 'i8'"),
            (["--type", "BF16", "--tensor-type", "a=q4_0"], "is for quantized files"),
            (["--type", "Q4_0", "--max-memory", "much"], "'much' is no size"),
            (["--type", "Q4_0", "--max-memory", "1MB"], "MB is the least"),
            (["--type", "Q4_0", "--imatrix", "nowhere.gguf"], "cannot be read"),
        ],
    )
    def test_wrong_usage_is_named(self, source: Path, args: list[str], words: str) -> None:
        result = run(str(source), "-o", str(source.with_name("out.gguf")), *args)
        assert result.exit_code == 2
        assert words in result.stderr
        assert [p.name for p in source.parent.iterdir()] == ["in.gguf"]

    def test_the_suffix_must_be_that_of_the_format(self, source: Path) -> None:
        result = run(str(source), "-o", str(source.with_name("out.bin")), "--type", "Q4_0")
        assert result.exit_code == 2
        assert "must end in .gguf" in result.stderr


_ZEROS = """
import sys
from pathlib import Path
import quantry
from quantry_gguf.convert import convert_gguf
from quantry_gguf.mixes import file_type
from quantry_gguf.tensor_types import TypeOptions
source = Path(sys.argv[1])
def peak(name):
    convert_gguf(source / name, source / "out.gguf", TypeOptions(file_type("Q8_0")), jobs=2)
    return quantry.peak_rss_bytes()
small = peak("small.gguf")
print(peak("large.gguf") - small)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Sparse files of zeros, 0.3 and 1.5 GB; what is in flight is bounded by 200 MB."""
    from quantry_gguf.values import typed_values
    from quantry_gguf.writer import NewTensor, plan_file

    for name, layers in (("small.gguf", 2), ("large.gguf", 10)):
        values = typed_values({"general.architecture": "llama", "llama.block_count": layers})
        shape = (9000, 8192)
        tensors = [NewTensor(f"blk.{i}.ffn_up.weight", shape, BY_NAME["bf16"]) for i in range(layers)]
        plan = plan_file(values, tensors)
        with (tmp_path / name).open("wb") as f:
            f.write(plan.head)
            f.truncate(plan.size)
    done = subprocess.run(
        [sys.executable, "-c", _ZEROS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50 << 20

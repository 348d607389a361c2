"""`quantry imatrix`: what it writes, says and refuses; sums of squares; ISQ that uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

import quantry
from quantry import Importance, ImportanceFormat
from quantry.cli import cli
from quantry.testing import installed
from quantry_transformers.importance import SquareSums, collect_importance, default_text

KEYS = {"tensors", "chunks", "tokens", "seconds", "tokens_per_s", "output", "peak_rss_bytes"}
TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. " * 4
CONFIG = {
    "vocab_size": 64, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def imatrix(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["imatrix", *map(str, arguments)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, hf_folder: Callable[..., Any]) -> tuple[Path, Any]:
    """A folder, and its model; columns are made to count very differently."""
    path = tmp_path_factory.mktemp("imatrix") / "llama"
    model = hf_folder(path, transformers.LlamaConfig(**CONFIG))
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.copy_(torch.logspace(-1, 1, 256))
        model.model.layers[0].post_attention_layernorm.weight.copy_(torch.logspace(1, -1, 256))
    model.save_pretrained(path)
    return path, model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_json_has_the_keys_of_the_contract_and_the_file_what_the_function_gives(
    llama: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    result = imatrix(llama[0], "-o", out, "--text", text, "--chunk-tokens", 32, "--chunks", 3, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document) >= KEYS
    expected = collect_importance(llama[0], TEXT, chunk_tokens=32, chunks=3)
    assert (document["chunks"], document["tokens"]) == (3, 96)
    assert document["datasets"] == ["words.txt"]
    assert document["tensors"] == len(expected.weights) == 8
    assert document["output"] == str(out)
    written = quantry.read_importance(out).weights
    assert set(written) == set(expected.weights)
    assert all(torch.equal(written[name], values) for name, values in expected.weights.items())


def test_isq_with_the_file_gives_the_bytes_of_quantize_with_its_values(
    llama: tuple[Path, Any], text: Path, tmp_path: Path
) -> None:
    path, model = llama
    out = tmp_path / "x.safetensors"
    assert imatrix(path, "-o", out, "--text", text, "--chunk-tokens", 32).exit_code == 0
    importance = quantry.read_importance(out).weights
    for folder, options in (("plain", []), ("weighted", ["--imatrix", str(out)])):
        command = ["quantize", str(path), "-o", str(tmp_path / folder / "x.uqff"), "--isq", "q3k", *options]
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
    plain, weighted = (quantry.open(tmp_path / folder) for folder in ("plain", "weighted"))
    dense = model.state_dict()
    assert len(importance) == 8
    for name, values in importance.items():
        kind = "q6k" if name == "lm_head.weight" else "q3k"  # heads are made larger, as llama.cpp does
        expected = quantry.quantize(dense[name], kind, importance=values)
        found = weighted[name]
        assert found.layout == expected.layout, name
        for buffer, content in expected.buffers.items():
            assert torch.equal(found.buffers[buffer], content), name
        changed = [not torch.equal(plain[name].buffers[b], c) for b, c in found.buffers.items()]
        assert any(changed), name
        error = [
            ((qt.dequantize() - dense[name]).double().square() * values).sum() for qt in (plain[name], found)
        ]
        assert error[1] < error[0], name


def test_without_a_text_the_shipped_one_is_used(tiny: Any, tmp_path: Path) -> None:
    with quantry.use(reference="allow"):
        result = imatrix(tiny("llama").path, "-o", tmp_path / "x.safetensors", "--chunks", 2,
                         "--chunk-tokens", 64, "--no-output-head", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["datasets"] == ["calibration.txt"]
    assert document["tensors"] == 2 * 7


def test_the_shipped_text_is_long_varied_and_not_the_held_out_one() -> None:
    words = default_text().split()
    assert len(words) > 5000
    assert len(set(words)) > 2400
    held_out = Path(__file__).parents[3] / "benchmarks" / "text" / "held_out.txt"
    theirs = held_out.read_text(encoding="utf-8").split()
    runs = [{" ".join(text[i : i + 8]) for i in range(len(text))} for text in (words, theirs)]
    assert not runs[0] & runs[1]


def test_what_is_written_is_said_on_stdout(llama: tuple[Path, Any], text: Path, tmp_path: Path) -> None:
    result = imatrix(llama[0], "-o", tmp_path / "x.safetensors", "--text", text, "--chunk-tokens", 32)
    assert result.exit_code == 0
    assert "8 weights over 9 chunks, 288 tokens" in result.stdout


def test_help_states_the_memory() -> None:
    said = imatrix("--help").stdout
    assert "one block (decoder layer)" in said
    assert "512 MiB" in said


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(4096))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: None, "cannot be read"),
        (lambda p: p.write_text(""), "the text has 0 tokens, and one chunk needs 32"),
        (lambda p: p.write_text("short"), "the text has 5 tokens, and one chunk needs 32"),
        (binary, "no UTF-8 text: byte 0x80 at 128"),
        (zeros, "zero byte at 0"),
    ],
    ids=["missing", "empty", "short", "binary", "zeros"],
)
def test_a_text_that_is_none_is_refused_and_named(
    llama: tuple[Path, Any], tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    path, out = tmp_path / "words.txt", tmp_path / "x.safetensors"
    write(path)
    result = imatrix(llama[0], "-o", out, "--text", path, "--chunk-tokens", 32)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert "words.txt" in "".join(result.output.split())
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [("x.wrong", "ends in '.wrong'"), ("x", "ends in ''"), ("nowhere/x.safetensors", "does not exist")],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    tmp_path: Path, text: Path, out: str, said: str
) -> None:
    result = imatrix(tmp_path / "no model", "-o", tmp_path / out, "--text", text)
    assert result.exit_code == 2
    assert said in result.output


def test_a_format_without_names_for_the_model_is_refused_at_its_first_layer(
    tmp_path: Path, text: Path, hf_folder: Callable[..., Any]
) -> None:
    class Foreign(ImportanceFormat):
        name, suffixes, convention = "foreign", (".foreign",), "nobody's"

        def detect(self, path: Path, head: bytes) -> bool:
            return False

        def read(self, path: Path) -> Importance:
            raise NotImplementedError

        def write(self, path: Path, importance: Importance) -> None:
            raise NotImplementedError

    plugin = SimpleNamespace(quantry_importance_formats=quantry.hookimpl(lambda: [Foreign()]))
    hf_folder(tmp_path / "m", transformers.LlamaConfig(**CONFIG))
    with installed(plugin):
        result = imatrix(tmp_path / "m", "-o", tmp_path / "x.foreign", "--text", text, "--chunk-tokens", 32)
    assert result.exit_code == 2, result.output
    assert "model.layers.0.self_attn.q_proj.weight" in result.output
    assert "no name for it" in result.output


def test_a_model_that_no_runtime_knows_is_refused(tmp_path: Path, text: Path) -> None:
    quantry.save_uqff(tmp_path / "m" / "x.uqff", {"a.weight": torch.ones(32, 32)})
    result = imatrix(tmp_path / "m", "-o", tmp_path / "x.safetensors", "--text", text)
    assert result.exit_code == 2, result.output
    assert "cannot be run" in result.output


def test_an_expert_without_tokens_has_ones_and_count_zero() -> None:
    sums = SquareSums()
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    sums(("a.weight",), x, torch.tensor([2, 0, 2]))
    weights, counts = sums.means({"a.weight": 5})
    assert weights["a.weight"].tolist() == [[9, 16], [1, 1], [13, 20], [1, 1], [1, 1]]
    assert counts["a.weight"].tolist() == [1, 0, 2, 0, 0]


def test_squares_beyond_float32_are_summed_and_nan_is_refused_by_name() -> None:
    sums = SquareSums()
    sums(("a.weight",), torch.tensor([[3e19, 1.0], [3e19, 1.0]]), None)
    sums(("a.weight",), torch.tensor([[0.0, 4.0]]), None)
    values, counts = sums.means({})
    assert torch.allclose(values["a.weight"], torch.tensor([6e38, 6.0]))
    assert counts["a.weight"].tolist() == [3]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(quantry.ValueDomainError, match="column 1") as e:
            sums(("b.weight", "c.weight"), torch.tensor([[0.0, bad]]), None)
        assert e.value.tensor == "b.weight"

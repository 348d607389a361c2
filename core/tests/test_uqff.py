"""UQFF in and out with a toy tag; real tags are checked in their plugins and against mistral.rs."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import tensors

import quantry
from quantry import (
    Dense,
    DuplicateTensor,
    FormatError,
    HeaderError,
    PluginError,
    QuantizedTensor,
    QuantryError,
    UsageError,
    save_uqff,
)
from quantry.uqff_output import plan_layer, plan_shards

pytestmark = pytest.mark.usefixtures("toys")


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "quantization_config": {"quant_method": "x"},
    "text_config": {"a": [{"quantization_config": 1, "b": 2}]},
}


@pytest.fixture
def saved(tmp_path):
    save_uqff(tmp_path / "x.uqff", tensors(), config=CONFIG, files={"tokenizer.json": b"{}"})
    return tmp_path


def edit(path, change):
    """Rewrite one safetensors file after `change(tensors)`."""
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    held = {k: v.clone() for k, v in load_file(path).items()}
    held = change(held) or held
    save_file(held, path, metadata)


def without(name):
    return lambda held: {k: v for k, v in held.items() if k != name}


def with_(**entries):
    return lambda held: held | {k.replace("__", "."): v for k, v in entries.items()}


def same(a, b):
    return (
        a.layout == b.layout
        and a.shape == b.shape
        and all(torch.equal(a.buffers[n], b.buffers[n]) for n in a.buffers)
    )


def test_what_is_saved_is_read_back(saved):
    ckpt = quantry.open(saved / "x-0.uqff")
    assert ckpt.format.name == "uqff"
    assert ckpt.architecture == "LlamaForCausalLM"
    for name, want in tensors().items():
        if isinstance(want, QuantizedTensor):
            assert same(ckpt[name], want)
        else:
            assert torch.equal(ckpt[name].buffers["weight"], want)
    assert ckpt["model.embed_tokens.weight"].layout == Dense("bf16")
    assert len(ckpt) == len(tensors())


def test_a_folder_of_one_output_opens_by_name(saved):
    assert quantry.open(saved).names() == quantry.open(saved / "x-0.uqff").names()


def test_layers_come_sorted_bytewise_then_the_residual(saved):
    assert quantry.open(saved).names() == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.bias",
        "model.layers.2.mlp.gate.weight",
        "model.norm.weight",
    ]


def test_views_share_the_mapped_file_and_rows_are_cut(saved):
    ckpt = quantry.open(saved)
    name = "model.layers.2.mlp.up_proj.weight"
    whole = ckpt[name]
    part = ckpt.load(name, slice(1, 3))
    assert torch.equal(part.dequantize(), whole.dequantize()[1:3])


def test_the_files_of_the_directory(saved):
    names = {p.name for p in saved.iterdir()}
    assert names == {"x-0.uqff", "residual.safetensors", "config.json", "uqff_report.json", "tokenizer.json"}
    config = json.loads((saved / "config.json").read_text())
    assert config == {"architectures": ["LlamaForCausalLM"], "text_config": {"a": [{"b": 2}]}}
    with safe_open(saved / "x-0.uqff", "pt") as f:
        assert f.metadata()["uqff.producer"] == "quantry"
        assert f.metadata()["uqff.version"] == "1.2.0"
    held = load_file(saved / "x-0.uqff")
    assert [held[f"uqff.version.{part}"].item() for part in ("major", "minor", "patch")] == [1, 2, 0]
    assert held["lm_head.weight.format"].shape == ()
    assert held["lm_head.weight.format"].item() == 200
    assert held["model.embed_tokens.weight.format"].item() == 1
    assert held["model.layers.2.mlp.up_proj.bias"].dtype == torch.float16
    assert set(load_file(saved / "residual.safetensors")) == {
        "model.layers.2.mlp.gate.weight",
        "model.norm.weight",
    }
    report = json.loads((saved / "uqff_report.json").read_text())
    assert list(report) == ["schema", "generated_by", "uqff_version", "outputs"]
    (output,) = report["outputs"]
    assert output["shards"] == ["x-0.uqff"]
    assert output["layers"] == 4
    assert output["actual_counts"] == {"toy32": 3, "unquant": 1}
    assert output["layer_details"][0] == {"module": "lm_head", "stored": "toy32", "shape": [6, 64]}


@pytest.mark.parametrize("key", ["model.layers.2.mlp.up_proj", "model.layers.2.mlp.up_proj.weight"])
def test_biases_go_by_any_of_their_names(tmp_path, key):
    held = tensors()
    bias = held.pop("model.layers.2.mlp.up_proj.bias")
    save_uqff(tmp_path / "x.uqff", held, {key: bias})
    assert torch.equal(quantry.open(tmp_path)["model.layers.2.mlp.up_proj.bias"].buffers["weight"], bias)


def test_shards_end_before_the_limit_and_read_as_one(tmp_path):
    paths = save_uqff(tmp_path / "x.uqff", tensors(), shard_bytes=400)
    assert len(paths) > 3
    sizes = [sum(t.nbytes for t in load_file(p).values()) for p in paths]
    biggest = max(t.nbytes for p in paths for t in load_file(p).values())
    assert max(sizes) <= max(400, biggest)
    assert sum("uqff.version.major" in load_file(p) for p in paths) == 1
    for path in (tmp_path, paths[0], paths[2]):
        assert same(quantry.open(path)["lm_head.weight"], tensors()["lm_head.weight"])
    assert quantry.verify(tmp_path) == []


def test_the_shard_rule_is_mistral_rs():
    layers = [plan_layer(key, Dense("f32"), (2, 4)) for key in ("b", "a", "c")]
    shards = plan_shards(layers, 12 + 1 + 32 + 1 + 32)
    assert [list(s)[-1] for s in shards] == ["b.weight", "c.weight"]
    assert "c.weight.format" in shards[1]


KEY = "model.layers.2.mlp.up_proj.weight"
FORMAT = f"{KEY}.format"


@pytest.mark.parametrize(
    ("change", "error", "tensor", "words"),
    [
        (without("uqff.version.minor"), HeaderError, None, "no version"),
        (with_(uqff__version__major=torch.tensor(2, dtype=torch.uint32)), HeaderError, None, "is UQFF 2.2.0"),
        (with_(uqff__version__minor=torch.tensor(3, dtype=torch.uint32)), HeaderError, None, "is UQFF 1.3.0"),
        (
            with_(uqff__version__major=torch.tensor([1], dtype=torch.uint32)),
            HeaderError,
            "uqff.version.major",
            "u32",
        ),
        (with_(uqff__version__major=torch.tensor(1)), HeaderError, "uqff.version.major", "u32 scalar"),
        (without(FORMAT), FormatError, KEY, "no `weight.format`"),
        (without(KEY), FormatError, KEY, "is missing"),
        (without(f"{KEY}.scales"), FormatError, KEY, "missing or wrong"),
        (without(f"{KEY}.shape"), FormatError, KEY, "missing or wrong"),
        (lambda h: h | {FORMAT: torch.tensor([200], dtype=torch.uint8)}, HeaderError, KEY, "u8 scalar"),
        (lambda h: h | {FORMAT: torch.tensor(200)}, HeaderError, KEY, "u8 scalar"),
        (lambda h: h | {FORMAT: torch.tensor(7, dtype=torch.uint8)}, HeaderError, KEY, "tag 7 is unknown"),
        (lambda h: h | {FORMAT: torch.tensor(1, dtype=torch.uint8)}, HeaderError, KEY, "holds floats"),
        (lambda h: h | {KEY: h[KEY][:-1]}, HeaderError, KEY, "not"),
        (
            lambda h: h | {f"{KEY}.shape": torch.tensor([64, 4], dtype=torch.uint32)},
            FormatError,
            KEY,
            "is BufferSpec",
        ),
        (lambda h: h | {KEY[:-6] + "bias": torch.ones(5)}, HeaderError, KEY[:-6] + "bias", "floats of"),
        (lambda h: h | {KEY[:-6] + "bias": torch.ones(4).int()}, HeaderError, KEY[:-6] + "bias", "floats of"),
        (lambda h: {str(i): v for i, v in enumerate(h.values())}, FormatError, None, "num_hidden_layers is"),
    ],
)
def test_each_lie_of_a_shard_has_its_error(saved, change, error, tensor, words):
    edit(saved / "x-0.uqff", change)
    with pytest.raises(error, match=words) as e:
        quantry.open(saved)
    assert e.value.file == str(saved / "x-0.uqff")
    assert e.value.tensor == tensor
    problems = quantry.verify(saved)
    assert problems
    assert all(p.file in ("x-0.uqff", "uqff_report.json") for p in problems)


@pytest.mark.parametrize(("tag", "dist"), [(0, "quantry-gguf"), (2, "quantry-hqq"), (4, "quantry-afq-metal")])
def test_a_tag_without_its_plugin_names_the_dist(saved, tag, dist):
    edit(saved / "x-0.uqff", lambda h: h | {FORMAT: torch.tensor(tag, dtype=torch.uint8)})
    with pytest.raises(PluginError, match=f"tag {tag}") as e:
        quantry.open(saved)
    assert dist in e.value.hint


@pytest.mark.parametrize("minor", [0, 1, 2])
def test_older_minors_and_any_patch_are_read(saved, minor):
    edit(
        saved / "x-0.uqff",
        with_(
            uqff__version__minor=torch.tensor(minor, dtype=torch.uint32),
            uqff__version__patch=torch.tensor(9, dtype=torch.uint32),
        ),
    )
    assert len(quantry.open(saved)) == len(tensors())


def test_surplus_entries_load_and_are_problems(saved):
    edit(saved / "x-0.uqff", lambda h: h | {"what.ever": torch.ones(1), f"{KEY}.extra": torch.ones(1)})
    assert len(quantry.open(saved)) == len(tensors())
    assert {p.tensor for p in quantry.verify(saved)} == {"what.ever", f"{KEY}.extra"}


def test_float8_biases_are_read_as_bf16(saved):
    bias = torch.tensor([1.0, -2, 0.5, 448]).to(torch.float8_e4m3fn)
    edit(saved / "x-0.uqff", lambda h: h | {KEY[:-6] + "bias": bias})
    got = quantry.open(saved)[KEY[:-6] + "bias"]
    assert got.layout == Dense("bf16")
    assert torch.equal(got.dequantize(), bias.float())


def test_a_name_in_two_shards_and_in_the_residual_is_named(tmp_path):
    paths = save_uqff(tmp_path / "x.uqff", tensors(), shard_bytes=400)
    edit(paths[-1], lambda h: h | {"lm_head.weight": torch.ones(1)})
    with pytest.raises(DuplicateTensor, match=r"x-0\.uqff") as e:
        quantry.open(tmp_path)
    assert e.value.tensor == "lm_head.weight"
    save_uqff(tmp_path / "x.uqff", tensors())
    edit(tmp_path / "residual.safetensors", lambda h: h | {"lm_head.weight": torch.ones(1)})
    with pytest.raises(DuplicateTensor, match="is a layer"):
        quantry.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    paths = save_uqff(tmp_path / "x.uqff", tensors(), shard_bytes=400)
    paths[1].unlink()
    for path in (tmp_path, paths[0]):
        with pytest.raises(FormatError, match=r"shard x-1\.uqff is missing"):
            quantry.open(path)
    (tmp_path / "uqff_report.json").unlink()  # now only the gap in the numbers tells
    for path in (tmp_path, paths[2]):
        with pytest.raises(FormatError, match=r"shard x-1\.uqff is missing"):
            quantry.open(path)


def test_several_outputs_in_a_folder_must_be_named(saved):
    (saved / "uqff_report.json").unlink()
    (saved / "y-0.uqff").write_bytes((saved / "x-0.uqff").read_bytes())
    with pytest.raises(UsageError, match="several UQFF outputs: x, y"):
        quantry.open(saved)
    assert len(quantry.open(saved / "y-0.uqff")) == len(tensors())
    assert quantry.verify(saved) == []


def test_a_file_of_any_name_stands_alone(saved):
    (saved / "uqff_report.json").unlink()
    (saved / "x-0.uqff").rename(saved / "model.uqff")
    assert len(quantry.open(saved / "model.uqff")) == len(tensors())


@pytest.mark.parametrize("report", ["[]", "{}", '{"outputs": []}', '{"outputs": [1]}', "{",
    '{"outputs": [{"quant": "a", "shards": []}]}', '{"outputs": [{"quant": "", "shards": ["x-0.uqff"]}]}',
    '{"outputs": [{"quant": "a", "shards": ["x-0.uqff", "x-0.uqff"]}]}',
    '{"outputs": [{"quant": "a", "shards": ["x-0.uqff"], "layer_details": [{}]}]}'])  # fmt: skip
def test_a_malformed_report_is_a_header_error(saved, report):
    (saved / "uqff_report.json").write_text(report)
    with pytest.raises(HeaderError) as e:
        quantry.open(saved)
    assert e.value.file == str(saved / "uqff_report.json")
    assert quantry.verify(saved)


def test_a_dense_checkpoint_beside_uqff_files_wins_unless_they_are_named(saved):
    save_file({"a.weight": torch.ones(2, 2)}, saved / "model.safetensors")
    assert quantry.open(saved).names() == ["a.weight"]
    assert quantry.open(saved / "x-0.uqff").format.name == "uqff"


@given(st.lists(st.tuples(st.integers(0, 2400), st.integers(0, 255)), max_size=4), st.integers(0, 60))
def test_mutated_shards_raise_quantry_errors_only(tmp_path_factory, toys, changes, cut):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        save_uqff(folder / "x.uqff", tensors(), config=CONFIG)
        (folder / "x-0.uqff").rename(folder / "good")
    content = bytearray((folder / "good").read_bytes())
    for place, value in changes:
        content[place] = value
    (folder / "x-0.uqff").write_bytes(content[: len(content) - cut])
    start = time.perf_counter()
    with contextlib.suppress(QuantryError):
        ckpt = quantry.open(folder / "x-0.uqff")
        for name in ckpt:
            ckpt[name].dequantize()
    assert isinstance(quantry.verify(folder / "x-0.uqff", strict=True), list)
    assert time.perf_counter() - start < 5

"""What a tensor is, by name and shape, and which type a topology pins for it."""

from __future__ import annotations

import pytest

import quantry
from quantry import UsageError
from quantry.isq_pins import check_pins
from quantry.roles import role_of
from quantry.topology import Topology


@pytest.mark.parametrize(
    ("pins", "name", "want"),
    [
        ({"0-2": "a"}, "model.layers.1.x.weight", "a"),
        ({"0-2": "a"}, "model.layers.2.x.weight", None),
        ({"3": "a"}, "transformer.h.3.x.weight", "a"),
        ({3: "a"}, "model.layers.3.x.weight", "a"),
        ({"0-4": "a", "4-9": "b"}, "layers.4.x", "b"),
        ({"0-4": "a", "2-9": {"device": "cuda[1]"}}, "layers.3.x", "a"),
        ({"/x/": "a", "/layers/": "b", "0-9": "c"}, "layers.1.x", "b"),
        ({"0": {"device": "cpu"}}, "layers.0.x", None),
        ({"0-9": "a"}, "lm_head.weight", None),
    ],
)
def test_topology_pins(pins, name, want):
    assert Topology.of(pins).pin(name) == want


@pytest.mark.parametrize("selector", ["3-3", "4-2", "x", "/(/", "-1"])
def test_malformed_selectors_are_refused(selector):
    with pytest.raises(UsageError):
        Topology.of({selector: "a"})


@pytest.mark.parametrize(
    ("device", "want"),
    [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda[1]", "cuda:1"), ("metal", "mps:0"), ("metal[2]", "mps:2")],
)
def test_devices_are_torch_s(device, want):
    topology = Topology.of({"0": {"device": device}})
    assert topology.device("layers.0.x") == want
    assert topology.device("layers.1.x") is None


def test_topology_files_are_yaml(tmp_path):
    path = tmp_path / "t.yml"
    path.write_text("0-2:\n  isq: q4k\n'/down/':\n  isq: 8\n")
    topology = Topology.of(path)
    assert topology.pin("layers.1.up.weight") == "q4k"
    assert topology.pin("layers.1.down.weight") == "8"
    path.write_text("")
    assert Topology.of(path) == Topology()


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("- a", 1, "must map"),
        ("{", 1, "not YAML"),
        ("0-2: q4k\n1: [", 2, "not YAML"),
        ("0-2: q4k\n1: a: b", 2, "not YAML"),
        ("\x00", None, "not YAML"),
        ("0-2: q4k\n\n0-2: q5k", 3, "stands in line 1"),
        ("? [1]\n: q4k", 1, "a selector is text"),
        ("0: !!python/object:os.system x", 1, "not YAML"),
        ("0: 2000-13-45", None, "not YAML"),
    ],
)
def test_a_file_that_is_no_topology_names_the_line(tmp_path, text, line, what):
    path = tmp_path / "t.yml"
    path.write_text(text)
    with pytest.raises(quantry.FormatError, match=what) as e:
        Topology.of(path)
    assert e.value.file == str(path)
    assert line is None or f"line {line}: " in e.value.problem


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("0-4: q4k\n2-9: q5k", 2, "overlaps '0-4'"),
        ("2-9: q4k\n0-4: q5k", 1, "overlaps '0-4'"),
        ("0-9: {device: cpu}\n1: {device: cuda}", 2, "overlaps"),
        ("a: q4k", 1, "is none of"),
        ("# pins\n4-4: q4k", 2, "is empty"),
        ("/(/: q4k", 1, "no regular expression"),
        ("0: {isq: q4k, devise: cpu}", 1, "unknown key 'devise'"),
        ("0: {isq: [q4k]}", 1, "which is no type"),
        ("0: true", 1, "which is no type"),
        ("0: {}", 1, "neither a type nor a device"),
        ("0:", 1, "neither a type nor a device"),
        ("0: {device: tpu}", 1, "the device 'tpu'"),
        ("0: {device: 'cuda[x]'}", 1, "the device"),
    ],
)
def test_an_entry_that_says_nothing_sensible_is_named(tmp_path, text, line, what):
    path = tmp_path / "t.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match=what) as e:
        Topology.of(path)
    assert e.value.file == str(path)
    assert e.value.problem.startswith(f"line {line}: topology entry")


@pytest.mark.parametrize(
    ("pins", "what"),
    [
        ({"0-5": "q8k"}, "leaves the model, which has 4 layers"),
        ({"4": {"device": "cpu"}}, "leaves the model"),
        ({"/no_such/": "q8k"}, "matches no tensor"),
        ({"0": "q4_z"}, "unknown ISQ type 'q4_z'"),
        ({"0": 7}, "has width 7"),
    ],
)
def test_a_topology_of_another_model_is_refused(pins, what):
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    with pytest.raises(UsageError, match=what):
        check_pins(Topology.of(pins), names)


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("model.embed_tokens.weight", (9, 4), "embedding"),
        ("token_embd.weight", (9, 4), "embedding"),
        ("transformer.wte.weight", (9, 4), "embedding"),
        ("transformer.wpe.weight", (9, 4), "position"),
        ("lm_head.weight", (9, 4), "head"),
        ("output.weight", (9, 4), "head"),
        ("blk.0.attn_output.weight", (9, 4), "linear"),
        ("encoder.layer.0.output.dense.weight", (9, 4), "linear"),
        ("model.layers.0.mlp.gate.weight", (9, 4), "router"),
        ("blk.0.ffn_gate_inp.weight", (9, 4), "router"),
        ("model.layers.0.mlp.gate_proj.weight", (9, 4), "linear"),
        ("blk.0.ffn_gate_exps.weight", (2, 9, 4), "experts"),
        ("model.layers.0.mlp.experts.gate_up_proj", (2, 9, 4), "experts"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (2, 9, 4), "other"),
        ("model.norm.weight", (4,), "other"),
        ("mamba.conv1d.weight", (9, 1, 4), "other"),
    ],
)
def test_roles_follow_from_name_and_shape(name, shape, role):
    assert role_of(name, shape) == role

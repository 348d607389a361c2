"""What a tensor is, by name and shape, and which type a topology pins for it."""

from __future__ import annotations

import pytest

import quantry
from quantry import UsageError
from quantry.roles import role_of
from quantry.topology import Topology


@pytest.mark.parametrize(
    ("pins", "name", "want"),
    [
        ({"0-2": "a"}, "model.layers.1.x.weight", "a"),
        ({"0-2": "a"}, "model.layers.2.x.weight", None),
        ({"3": "a"}, "transformer.h.3.x.weight", "a"),
        ({3: "a"}, "model.layers.3.x.weight", "a"),
        ({"0-9": "a", "0-4": "b"}, "layers.1.x", "a"),
        ({"0-4": "a", "1-4": "b"}, "layers.1.x", "b"),
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


def test_topology_files_are_yaml(tmp_path):
    path = tmp_path / "t.yml"
    path.write_text("0-2:\n  isq: q4k\n'/down/':\n  isq: 8\n")
    topology = Topology.of(path)
    assert topology.pin("layers.1.up.weight") == "q4k"
    assert topology.pin("layers.1.down.weight") == "8"
    path.write_text("")
    assert Topology.of(path) == Topology()
    for text in ("- a", "{", "a: [", "\x00"):
        path.write_text(text)
        with pytest.raises(quantry.FormatError):
            Topology.of(path)


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

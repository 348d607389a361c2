"""ISQ with a toy plugin: selection, promotion, fallback, streaming, and quantizing a model in place."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import quantry
from quantry import Dense, ShapeError, UsageError, ValueDomainError
from quantry.isq import Weights, quantize_checkpoint, resolve_quantizer
from quantry.isq_plan import Selection, make_plan

pytestmark = pytest.mark.usefixtures("toys")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


TENSORS = {
    "model.embed_tokens.weight": noise(10, 64),
    "model.layers.0.self_attn.q_proj.weight": noise(7, 64),
    "model.layers.0.self_attn.q_proj.bias": noise(7).bfloat16(),
    "model.layers.0.mlp.down_proj.weight": noise(5, 96).bfloat16(),
    "model.layers.0.mlp.odd_proj.weight": noise(5, 20).half(),
    "model.layers.0.mlp.gate.weight": noise(3, 64),
    "model.layers.0.conv.weight": noise(4, 1, 3),
    "model.layers.0.input_layernorm.weight": torch.ones(64),
    "lm_head.weight": noise(10, 64, seed=1),
}


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    save_file(TENSORS, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["A"]}))
    (source / "tokenizer.json").write_text("{}")
    return source


def run(folder, out="out/x.uqff", types="toy64", **options):
    return quantize_checkpoint(folder, folder.parent / out, types, **options)


def details(result, which=0):
    return {layer.module: layer for layer in result.outputs[which].layers}


def test_a_width_takes_the_installed_type_of_highest_priority():
    assert resolve_quantizer("4").name == "toy64"
    assert resolve_quantizer("8").name == "toy32"
    assert resolve_quantizer("TOY_64").name == "toy64"


def test_unknown_types_propose_the_nearest():
    with pytest.raises(UsageError, match="toy46") as e:
        resolve_quantizer("toy46")
    assert "Did you mean 'toy" in e.value.hint
    with pytest.raises(UsageError, match="width 3") as e:
        resolve_quantizer("3")
    assert e.value.hint == "Widths: 4, 8."


def test_quantize_packs_one_tensor():
    qt = quantry.quantize(noise(4, 64), "toy64")
    assert str(qt.layout) == "toy:64"
    assert torch.allclose(qt.dequantize(), noise(4, 64), atol=0.05)


def test_quantize_refuses_with_a_reason_and_its_fallbacks():
    with pytest.raises(ShapeError, match="no multiple of 64") as e:
        quantry.quantize(noise(4, 96), "toy64")
    assert "toy32" in e.value.hint
    with pytest.raises(UsageError):
        quantry.quantize(torch.ones(4), "toy64")
    with pytest.raises(UsageError, match="hessian"):
        quantry.quantize(noise(4, 64), "toy_hessian", importance=torch.ones(64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_named_by_row_and_column(bad):
    weight = noise(5, 64)
    weight[3, 17] = bad
    with pytest.raises(ValueDomainError, match="at row 3, column 17"):
        quantry.quantize(weight, "toy64")


def test_plain_types_are_quantizers():
    w = noise(3, 5)
    for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        assert torch.equal(quantry.quantize(w, name).buffers["weight"], w.to(dtype))
    with pytest.raises(ValueDomainError, match="no f16"):
        quantry.quantize(torch.full((2, 2), 1e6), "f16")


def test_promotion_and_fallback_follow_the_declarations(folder):
    layers = details(run(folder))
    stored = {key.rpartition(".")[2]: layer.stored for key, layer in layers.items()}
    assert stored == {
        "embed_tokens": "toy32",  # promoted
        "lm_head": "toy32",  # promoted
        "q_proj": "toy64",
        "down_proj": "toy32",  # 96 columns: fallback
        "odd_proj": "unquant",  # 20 columns: nothing packs them
    }
    down = layers["model.layers.0.mlp.down_proj"]
    assert (down.default_target, down.resolved_target) == ("toy64", "toy64")
    assert down.reason == "toy64: 96 columns are no multiple of 64; gone is not installed"
    assert layers["lm_head"].resolved_target == "toy32"
    assert layers["lm_head"].reason is None


def test_fallbacks_are_counted_and_the_report_names_them(folder):
    result = run(folder)
    (output,) = result.as_json()["outputs"]
    assert output["fallback_count"] == 2
    assert output["actual_counts"] == {"toy32": 3, "toy64": 1, "unquant": 1}
    report = json.loads((folder.parent / "out" / "uqff_report.json").read_text())
    fallbacks = {f["module"]: (f["from"], f["to"]) for f in report["outputs"][0]["fallbacks"]}
    assert fallbacks == {
        "model.layers.0.mlp.down_proj": ("toy64", "toy32"),
        "model.layers.0.mlp.odd_proj": ("toy64", "unquant"),
    }
    assert quantry.verify(folder.parent / "out") == []


def test_the_streamed_result_equals_quantizing_whole_tensors(folder):
    result = run(folder, jobs=3)
    ckpt = quantry.open(result.folder)
    assert set(ckpt.names()) == set(TENSORS)
    for layer in result.outputs[0].layers:
        name = f"{layer.module}.weight"
        kind = "f32" if layer.stored == "unquant" else layer.stored
        want = quantry.quantize(TENSORS[name], kind)
        got = ckpt[name]
        assert all(torch.equal(got.buffers[n], want.buffers[n]) for n in want.buffers)
    for name in (
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.conv.weight",
        "model.layers.0.input_layernorm.weight",
    ):
        assert torch.equal(ckpt[name].buffers["weight"], TENSORS[name])
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert torch.equal(ckpt[bias].buffers["weight"], TENSORS[bias])


def test_any_number_of_jobs_writes_the_same_bytes(folder):
    for jobs in (1, 4):
        run(folder, out=f"{jobs}/x.uqff", jobs=jobs)
    for file in ("x-0.uqff", "residual.safetensors", "config.json", "uqff_report.json", "tokenizer.json"):
        assert (folder.parent / "1" / file).read_bytes() == (folder.parent / "4" / file).read_bytes()


def test_a_dry_run_states_the_exact_size_and_writes_nothing(folder):
    planned = run(folder, types=["toy64", "toy32"], out="out", dry_run=True)
    assert not (folder.parent / "out").exists()
    done = run(folder, types=["toy64", "toy32"], out="out")
    assert planned.outputs == done.outputs
    assert planned.output_bytes == done.output_bytes
    files = [*done.outputs[0].shards, *done.outputs[1].shards, "residual.safetensors"]
    assert done.output_bytes == sum((done.folder / file).stat().st_size for file in files)


def test_several_types_make_a_folder_of_outputs(folder):
    result = run(folder, types=["toy64", "bf16"], out="out")
    assert [o.shards for o in result.outputs] == [("toy64-0.uqff",), ("bf16-0.uqff",)]
    with pytest.raises(UsageError, match="several"):
        quantry.open(result.folder)
    for name in ("toy64-0.uqff", "bf16-0.uqff"):
        assert len(quantry.open(result.folder / name)) == len(TENSORS)
    assert quantry.verify(result.folder) == []
    assert quantry.open(result.folder / "bf16-0.uqff")["lm_head.weight"].layout == Dense("bf16")


def test_small_shards_are_filled_from_several_threads(folder):
    result = run(folder, shard_bytes=300, jobs=4)
    assert len(result.outputs[0].shards) > 3
    assert quantry.open(result.folder)["lm_head.weight"].shape == (10, 64)


@pytest.mark.parametrize(
    ("out", "types", "words"),
    [
        ("x.uqff", ["toy64", "toy32"], "folder"),
        ("x.uqff", [], "no ISQ type"),
        ("out", ["toy64", "TOY64"], "twice"),
        ("hf/x.uqff", "toy64", "among the source"),
    ],
)
def test_wrong_outputs_are_refused(folder, out, types, words):
    with pytest.raises(UsageError, match=words):
        run(folder, out=out, types=types)


def test_nan_in_a_checkpoint_names_tensor_row_and_column_and_leaves_nothing(folder):
    held = {k: v.clone() for k, v in TENSORS.items()}
    held["lm_head.weight"][9, 63] = float("nan")
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ValueDomainError, match="row 9, column 63") as e:
        run(folder)
    assert e.value.tensor == "lm_head.weight"
    assert {p.name for p in folder.parent.iterdir()} == {"hf"}


def test_include_exclude_and_topology_select(folder):
    result = run(folder, selection=Selection.of(include=["_proj", "mlp.gate"], exclude=["odd"]))
    assert {k.rpartition(".")[2] for k, v in details(result).items() if v.default_target} == {
        "q_proj",
        "down_proj",
        "gate",
    }
    pins = {"/lm_head/": "toy64", "0": {"isq": "8", "device": "cpu"}}
    layers = details(run(folder, selection=Selection.of(topology=pins)))
    assert layers["lm_head"].stored == "toy64"
    assert layers["model.layers.0.self_attn.q_proj"].stored == "toy32"
    assert "model.layers.0.mlp.gate" not in layers
    with pytest.raises(UsageError, match="nothing is selected"):
        run(folder, selection=Selection.of(include=["nothing"]))
    with pytest.raises(UsageError, match="regular expression"):
        Selection.of(include=["("])


def test_what_is_not_selected_is_a_layer_without_targets(folder):
    layers = details(run(folder, selection=Selection.of(exclude=["lm_head"])))
    assert layers["lm_head"].stored == "unquant"
    assert layers["lm_head"].default_target is None
    assert not layers["lm_head"].is_fallback


def test_a_tied_head_is_left_out(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    result = run(folder)
    assert "lm_head.weight" not in quantry.open(result.folder)
    assert result.plans[0].left_out == {"lm_head.weight": "tied to the embedding"}


def test_experts_become_one_stack(tmp_path):
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    held = {
        f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight": noise(6, 64, seed=e)
        for e in range(3)
        for w in names
    }
    held["model.layers.0.block_sparse_moe.gate.weight"] = noise(3, 64)
    (tmp_path / "hf").mkdir()
    save_file(held, tmp_path / "hf" / "model.safetensors")
    result = quantize_checkpoint(
        tmp_path / "hf", tmp_path / "o.uqff", "toy64", selection=Selection.of(organization="moqe"), jobs=2
    )
    ckpt = quantry.open(result.folder / "o-0.uqff")
    for w, part in names.items():
        got = ckpt[f"model.layers.0.block_sparse_moe.experts.{part}.weight"]
        want = quantry.quantize(
            torch.stack([held[f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight"] for e in range(3)]),
            "toy64",
        )
        assert got.shape == (3, 6, 64)
        assert all(torch.equal(got.buffers[n], want.buffers[n]) for n in want.buffers)


@pytest.mark.parametrize("leaf", ["", ".weight"])
def test_fused_experts_are_stored_apart(tmp_path, leaf):
    stem = "model.layers.0.mlp.experts"
    held = {
        f"{stem}.gate_up_proj{leaf}": noise(3, 12, 64),
        f"{stem}.down_proj{leaf}": noise(3, 64, 6),
        "model.layers.1.mlp.experts.gate_up_proj": noise(3, 64, 12),  # transposed: rows are inputs
        "model.layers.1.mlp.experts.down_proj": noise(3, 6, 64),
    }
    (tmp_path / "hf").mkdir()
    save_file(held, tmp_path / "hf" / "model.safetensors")
    result = quantize_checkpoint(tmp_path / "hf", tmp_path / "o.uqff", "toy64")
    ckpt = quantry.open(result.folder / "o-0.uqff")
    for part, rows in (("gate", slice(0, 6)), ("up", slice(6, 12))):
        got = ckpt[f"{stem}.{part}_proj.weight"]
        want = quantry.quantize(held[f"{stem}.gate_up_proj{leaf}"][:, rows], "toy64")
        assert got.shape == (3, 6, 64)
        assert all(torch.equal(got.buffers[n], want.buffers[n]) for n in want.buffers)
    assert torch.equal(ckpt[f"{stem}.down_proj.weight"].dequantize(), held[f"{stem}.down_proj{leaf}"])
    assert "model.layers.1.mlp.experts.gate_up_proj" in result.plans[0].residual


def test_moqe_without_experts_is_refused(folder):
    with pytest.raises(UsageError, match="nothing is selected"):
        run(folder, selection=Selection.of(organization="moqe"))


def test_packed_weights_of_the_same_type_are_kept_and_others_refused():
    w = noise(4, 64)
    same, other = quantry.quantize(w, "toy64"), quantry.quantize(w, "toy32")
    plan = make_plan(Weights([("a.weight", same)]), resolve_quantizer("toy64"))
    assert plan.tensors[0].quantizer is None
    source = Weights([("a.weight", other), ("b.weight", same)])
    with pytest.raises(UsageError, match="packed already") as e:
        make_plan(source, resolve_quantizer("toy64"))
    assert e.value.tensor == "a.weight"
    assert "requantize" in e.value.hint
    plan = make_plan(source, resolve_quantizer("toy64"), requantize=True)
    assert [t.quantizer is None for t in plan.tensors] == [False, True]


def test_an_export_in_memory_is_a_source(tmp_path):
    same = quantry.quantize(noise(5, 64), "toy64")
    norm = quantry.QuantizedTensor(Dense("f32"), (64,), {"weight": torch.ones(64)})
    result = quantize_checkpoint(
        Weights([("a.weight", same), ("norm.weight", norm)]),
        tmp_path / "x.uqff",
        "toy64",
        config={"model_type": "llama"},
        files={"tokenizer.json": b"{}"},
    )
    got = quantry.open(tmp_path / "x-0.uqff")["a.weight"]
    assert all(torch.equal(got.buffers[n], same.buffers[n]) for n in same.buffers)
    assert result.outputs[0].actual_counts == {"toy64": 1}
    assert (tmp_path / "tokenizer.json").read_bytes() == b"{}"


def test_types_without_whole_row_blocks_take_the_tensor_whole(folder):
    held = {"a.weight": noise(9, 128)}
    save_file(held, folder / "model.safetensors")
    result = run(folder, types="toy128")
    got, want = quantry.open(result.folder)["a.weight"], quantry.quantize(held["a.weight"], "toy128")
    assert all(torch.equal(got.buffers[n], want.buffers[n]) for n in want.buffers)


def test_progress_reaches_the_total(folder):
    seen = []
    run(folder, progress=lambda *told: seen.append(told), jobs=2)
    assert seen[-1][0] == seen[-1][1]
    assert [told[0] for told in seen] == sorted(told[0] for told in seen)
    assert seen[-1][3] == 5

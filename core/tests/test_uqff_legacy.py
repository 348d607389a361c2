"""UQFF 0.x: blobs as mistralrs 0.6.0 wrote them, whole files of plain layers, and blobs that lie."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

import quantry
from quantry import FormatError, HeaderError, QuantryError, Source, TruncatedFile
from quantry.isq import quantize_checkpoint
from quantry.safetensors_header import parse_header
from quantry.uqff_layer import tensor_of
from quantry.uqff_legacy import legacy_keys, legacy_places
from quantry.uqff_shards import StoredIn

pytestmark = pytest.mark.usefixtures("toys")

GOLDEN = load_file(Path(__file__).parent / "fixtures" / "uqff0.safetensors")
TYPES = sorted({name.partition("/")[0] for name in GOLDEN if "/" in name})

ATTENTION = [f"self_attn.{n}_proj" for n in "qkvo"]
MLP = [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
KEYS = ["lm_head", *(f"model.layers.0.{part}" for part in ATTENTION + MLP)]


def tensor(values) -> bytes:
    """A tensor with its header, as every blob holds them."""
    code = {torch.float32: 6, torch.bfloat16: 5, torch.uint8: 0}[values.dtype]
    sizes = struct.pack(f"<{values.ndim}I", *values.shape)
    data = bytes(values.contiguous().view(torch.uint8).flatten().tolist())
    return struct.pack("<III", len(data), code, values.ndim) + sizes + data


def plain(weight, bias=None, version=0x200) -> bytes:
    """A blob of tag 1."""
    tail = b"" if bias is None else tensor(bias)
    return struct.pack("<IBB", version, 1, bias is not None) + tensor(weight) + tail


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def weights():
    return {f"{key}.weight": noise(6 + i, 8) for i, key in enumerate(KEYS)} | {
        "model.layers.0.self_attn.k_proj.bias": noise(8)
    }


def blobs():
    held = weights()
    return [plain(held[f"{key}.weight"], held.get(f"{key}.bias")) for key in KEYS]


def write(folder, payloads, config=CONFIG, shards=1):
    """A 0.x folder; numbers are spread over the shards."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        part = {
            str(i): torch.tensor(list(blob), dtype=torch.uint8)
            for i, blob in enumerate(payloads)
            if i % shards == shard
        }
        save_file(part, folder / f"x-{shard}.uqff")
    save_file({"model.norm.weight": torch.ones(8)}, folder / "residual.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def places(folder, payloads, config):
    write(folder, payloads, config)
    source = Source.open(folder)
    mapped = source.file("x-0.uqff")
    found = {name: StoredIn(mapped, stored) for name, stored in parse_header(mapped).tensors.items()}
    return legacy_places(source, found)


@pytest.mark.parametrize("isq", TYPES)
def test_a_blob_holds_what_the_same_layer_has_in_1_2(tmp_path, isq):
    """The blob is of mistralrs 0.6.0, the entries of 0.9.5, from one model."""
    blob = bytes(GOLDEN[f"{isq}/blob"].tolist())
    config = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 1}
    found, version = places(tmp_path, [blob] * 8, config)
    assert version == (0, 1, 3)
    key = KEYS[1]
    entries = {n.removeprefix(f"{key}."): p for n, p in found.items() if n.startswith(f"{key}.")}
    truth = {n.removeprefix(f"{isq}/"): t for n, t in GOLDEN.items() if n.startswith(f"{isq}/")}
    del truth["blob"]
    assert entries.keys() == truth.keys()
    for name, want in truth.items():
        got = tensor_of(entries[name])
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        assert torch.equal(got.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8)), name


def test_layers_have_the_order_that_mistralrs_wrote():
    assert legacy_keys({"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 1}, 8) == (
        bytes(GOLDEN["names"].tolist()).decode().splitlines()
    )


MOE = {"num_hidden_layers": 2, "num_experts": 2}


# found by giving mistralrs 0.6.0 random weights and looking for them in what it wrote
@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        ({"architectures": ["MistralForCausalLM"], "num_hidden_layers": 2}, [ATTENTION + MLP] * 2),
        ({"model_type": "qwen3", "num_hidden_layers": 1}, [ATTENTION + MLP]),
        ({"model_type": "gemma2", "num_hidden_layers": 1}, [ATTENTION + MLP]),
        ({"model_type": "phi3", "num_hidden_layers": 1},
         [["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]]),
        ({"model_type": "starcoder2", "num_hidden_layers": 1}, [[*ATTENTION, "mlp.c_fc", "mlp.c_proj"]]),
        ({"architectures": ["Qwen3MoeForCausalLM"], **MOE},
         [[*ATTENTION, *(f"mlp.experts.{e}.{n}_proj" for e in (0, 1) for n in ("gate", "up", "down"))]] * 2),
        ({"model_type": "qwen3_moe", **MOE, "decoder_sparse_step": 2, "mlp_only_layers": [0]},
         [ATTENTION + MLP,
          [*ATTENTION, *(f"mlp.experts.{e}.{n}_proj" for e in (0, 1) for n in ("gate", "up", "down"))]]),
        ({"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 2},
         [[*ATTENTION, "block_sparse_moe.gate",
           *(f"block_sparse_moe.experts.{e}.{w}" for e in (0, 1) for w in ("w1", "w2", "w3"))]]),
    ],
    ids=["mistral", "qwen3", "gemma2", "phi3", "starcoder2", "qwen3_moe", "qwen3_moe sparse", "mixtral"],
)  # fmt: skip
def test_the_order_of_each_architecture(config, blocks):
    want = ["lm_head"] + [f"model.layers.{i}.{part}" for i, block in enumerate(blocks) for part in block]
    assert legacy_keys(config, len(want)) == want


@pytest.mark.parametrize("shards", [1, 3])
def test_a_whole_file_opens_under_names_and_without_problems(tmp_path, shards):
    folder = write(tmp_path / "old", blobs(), shards=shards)
    ckpt = quantry.open(folder)
    assert ckpt.format.name == "uqff"
    for name, want in weights().items():
        assert torch.equal(ckpt[name].buffers["weight"], want), name
    assert set(ckpt) == {*weights(), "model.norm.weight"}
    assert torch.equal(
        ckpt.load("lm_head.weight", slice(2, 4)).dequantize(), weights()["lm_head.weight"][2:4]
    )
    assert quantry.verify(folder) == []
    assert "UQFF 0.2.0" in str(quantry.verify(folder, strict=True))


def test_keeping_every_type_writes_uqff_1_2(tmp_path):
    quantize_checkpoint(write(tmp_path / "old", blobs()), tmp_path / "new" / "x.uqff", "keep")
    ckpt = quantry.open(tmp_path / "new")
    assert load_file(tmp_path / "new" / "x-0.uqff")["uqff.version.minor"].item() == 2
    assert all(torch.equal(ckpt[name].buffers["weight"], want) for name, want in weights().items())


@pytest.mark.parametrize(("tag", "payload", "entries"), [
    (5, struct.pack("<III", 2, 1, 40) + bytes(66),
     {"weight": ("u8", (66,)), "weight.num_blocks": ("u32", ()), "weight.shape": ("u32", (1,))}),
    (6, tensor(torch.zeros(2, 16, dtype=torch.uint8)) + tensor(torch.ones(2, 1, dtype=torch.uint8)),
     {"weight": ("u8", (2, 16)), "weight.scales": ("u8", (2, 1))}),
])  # fmt: skip
def test_tags_that_came_later_have_their_entries(tmp_path, tag, payload, entries):
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 0}
    found, version = places(tmp_path, [struct.pack("<IBB", 0x200, tag, 0) + payload], config)
    assert version == (0, 2, 0)
    specs = {n.removeprefix("lm_head."): p.stored.spec for n, p in found.items()}
    assert specs == {"weight.format": ("u8", ()), **entries}


def damaged(change):
    """The blobs, one of which `change` makes another."""
    made = blobs()
    made[3] = change(made[3])
    return made


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda b: b[:3], TruncatedFile, "the version takes 4 bytes, 3 are left"),
        (lambda b: b[:5], TruncatedFile, "the bias flag takes 1 bytes"),
        (lambda b: struct.pack("<I", 0x300) + b[4:], HeaderError, "is UQFF 0.3.0"),
        (lambda b: struct.pack("<I", 0x10000) + b[4:], HeaderError, "is UQFF 1.0.0"),
        (lambda b: struct.pack("<I", 0x103) + b[4:], HeaderError, "several versions: 0.1.3, 0.2.0"),
        (lambda b: b[:4] + b"\x07" + b[5:], HeaderError, "tag 7 is unknown"),
        (lambda b: b[:5] + b"\x02" + b[6:], HeaderError, "the bias flag is 2"),
        (lambda b: b[:5] + b"\x01" + b[6:], TruncatedFile, "the bias's size takes 4 bytes, 0 are left"),
        (lambda b: b[:10] + struct.pack("<I", 12) + b[14:], HeaderError, "element type 12"),
        (lambda b: b[:14] + struct.pack("<I", 2**32 - 1) + b[18:], TruncatedFile, "shape takes 17179869180"),
        (lambda b: b[:18] + struct.pack("<II", 2**32 - 1, 2**32 - 1) + b[26:], HeaderError, "but says"),
        (lambda b: b[:6] + struct.pack("<I", 4) + b[10:], HeaderError, "but says 4"),
        (lambda b: b[:-1], TruncatedFile, r"`weight` takes 288 bytes, 287 are left"),
        (lambda b: b + b"\0", HeaderError, "1 bytes follow the last field"),
        (lambda b: b[:4] + b"\5\0" + struct.pack("<III", 2**32 - 1, 1, 32), TruncatedFile, "takes 141733"),
        (lambda b: b[:4] + b"\0" + struct.pack("<IBII", 2**32 - 1, 0, 8, 0), TruncatedFile, "takes 42949672"),
        (lambda b: b[:4] + b"\x01\x01" + b[6:] + tensor(torch.ones(5)), HeaderError, "must be floats of"),
    ],
)  # fmt: skip
def test_each_lie_of_a_blob_has_its_error(tmp_path, change, error, words):
    folder = write(tmp_path / "old", damaged(change))
    with pytest.raises(error, match=words) as e:
        quantry.open(folder)
    assert e.value.file == str(folder / "x-0.uqff")
    assert e.value.tensor is None or e.value.tensor.startswith(KEYS[3])
    assert quantry.verify(folder)


@pytest.mark.parametrize(
    ("config", "count", "words"),
    [
        ({**CONFIG, "architectures": ["GlmForCausalLM"]}, 8, "layer order of GlmForCausalLM is not"),
        ({}, 8, "a model without config.json"),
        ({"architectures": ["LlamaForCausalLM"]}, 8, "num_hidden_layers is None"),
        ({**CONFIG, "num_hidden_layers": 10**12}, 8, "num_hidden_layers is 1000000000000"),
        ({**CONFIG, "num_hidden_layers": True}, 8, "num_hidden_layers is True"),
        (CONFIG, 7, "holds 7 layers, LlamaForCausalLM of 1 blocks has more"),
        ({**CONFIG, "num_hidden_layers": 0}, 8, "holds 8 layers, LlamaForCausalLM of 0 blocks has 1"),
        ({"model_type": "qwen3_moe", **MOE, "num_experts": 10**12}, 8, "says 1000000000000 experts"),
        ({"model_type": "qwen3_moe", **MOE, "decoder_sparse_step": 0}, 8, "decoder_sparse_step 0"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_named_are_refused(tmp_path, config, count, words):
    folder = write(tmp_path / "old", (blobs() * 2)[:count], config)
    with pytest.raises(FormatError, match=words) as e:
        quantry.open(folder)
    assert e.value.file == str(folder / "x-0.uqff")
    assert e.value.hint
    assert [p.file for p in quantry.verify(folder)] == ["x-0.uqff"]


def test_a_number_that_is_missing_is_named(tmp_path):
    folder = write(tmp_path / "old", blobs())
    held = load_file(folder / "x-0.uqff")
    held["8"] = held.pop("3").clone()
    save_file(held, folder / "x-0.uqff")
    with pytest.raises(FormatError, match=r"none of number 3 \(model\.layers\.0\.self_attn\.v_proj\)"):
        quantry.open(folder)


@given(
    st.sampled_from(TYPES),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    st.integers(0, 80),
)
def test_mutated_blobs_raise_quantry_errors_only(tmp_path_factory, toys, isq, changes, cut):
    blob = bytearray(GOLDEN[f"{isq}/blob"].tolist())
    for place, value in changes:
        blob[place] = value
    folder = tmp_path_factory.getbasetemp() / "mutated_blob"
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 0}
    with contextlib.suppress(QuantryError):
        found, _ = places(folder, [bytes(blob[: len(blob) - cut])], config)
        for place in found.values():
            assert tensor_of(place).nbytes == place.stored.nbytes
    assert isinstance(quantry.verify(folder, strict=True), list)

"""Packed modules: saving, loading, moving, copying, compiling, gradients."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import quantry
from quantry import (
    FormatError,
    NoKernelError,
    QuantEmbedding,
    QuantExperts,
    QuantizedTensor,
    QuantLinear,
    ShapeError,
    TiedHead,
    UsageError,
)

LAYOUTS = ["affine:b4,g32,in,mid,f16", "affine:b3,g32,in,bias,f32", "codebook:nf4,g32,f32", "dense:f32"]


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QUANTRY_REFERENCE", "allow")


def packed(text, shape, seed=0):
    """Random codes and scales of a layout: any bytes are valid ones."""
    generator = torch.Generator().manual_seed(seed)
    layout = quantry.registry().layout(text)
    buffers = {}
    for name, spec in layout.buffers(shape).items():
        if spec.dtype == "u8":
            buffers[name] = torch.randint(0, 256, spec.shape, dtype=torch.uint8, generator=generator)
        else:
            values = torch.rand(spec.shape, generator=generator) * 0.1 + 0.01
            buffers[name] = values.to(quantry.torch_dtype(spec.dtype))
    return QuantizedTensor(layout, shape, buffers)


@pytest.fixture(params=LAYOUTS)
def layer(request):
    return QuantLinear(packed(request.param, (48, 64)), torch.linspace(-1, 1, 48))


@pytest.fixture
def x():
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def expected(layer, x):
    weight = layer.storable().dequantize().double()
    return (x.double() @ weight.T + layer.bias.double()).to(x.dtype)


def test_forward_is_the_product_with_the_definition(layer, x):
    torch.testing.assert_close(layer(x), expected(layer, x))


def test_state_dict_survives_safetensors(layer, x):
    state = load(save({k: v.contiguous() for k, v in layer.state_dict().items()}))
    fresh = QuantLinear.empty("dense:f16", (48, 64), device="cpu")
    fresh.register_parameter("bias", nn.Parameter(torch.zeros(48)))
    fresh.load_state_dict(state)
    assert fresh.layout == layer.storable().layout
    assert torch.equal(fresh(x), layer(x))


def test_state_dict_survives_weights_only_loading(layer, x):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = QuantLinear.empty(str(layer.storable().layout), (48, 64))
    fresh.register_parameter("bias", nn.Parameter(torch.zeros(48, device="meta")))
    fresh.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert torch.equal(fresh(x), layer(x))


def test_a_state_dict_of_another_shape_is_refused(layer):
    state = dict(QuantLinear(packed("dense:f32", (16, 64))).state_dict())
    with pytest.raises(ShapeError, match="16"):
        layer.load_state_dict(state, strict=False)


def test_a_damaged_layout_description_is_a_format_error(layer):
    state = layer.state_dict()
    state["_extra_state"] = torch.tensor(list(b'{"layout": "affine:b99", "shape": [1]}'), dtype=torch.uint8)
    with pytest.raises(FormatError, match="_extra_state"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_copies_compute_the_same(layer, x, clone):
    y = layer(x)
    assert torch.equal(clone(layer)(x), y)


def test_dtype_casts_leave_the_packed_bytes_alone(layer, x):
    before = {n: b.clone() for n, b in layer.storable().buffers.items()}
    y = layer(x)
    layer.half().bfloat16().float()
    assert all(torch.equal(before[n], b) for n, b in layer.storable().buffers.items())
    assert layer.compute_dtype == torch.float32
    torch.testing.assert_close(layer(x), y, atol=0.02, rtol=0.02)  # the bias itself went through bfloat16


def test_meta_modules_know_shapes_and_allocate_nothing():
    layer = QuantLinear.empty("affine:b4,g32,in,mid,f16", (48, 64))
    assert layer(torch.empty(2, 3, 64, device="meta")).shape == (2, 3, 48)
    assert layer.to_empty(device="cpu").device.type == "cpu"


def test_weight_can_be_asked_not_computed_with():
    layer = QuantLinear(packed(LAYOUTS[0], (48, 64)))
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == (
        (48, 64),
        torch.float32,
        "meta",
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole_with_gradients_to_x(layer, x, backend):
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), layer(x))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(a).square().sum().backward()
    layer(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_gradient_is_the_transposed_product(layer, x):
    x.requires_grad_()
    dy = torch.randn(5, 48)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, (dy.double() @ layer.storable().dequantize().double()).float())


def test_op_passes_opcheck(x):
    qt = packed(LAYOUTS[0], (48, 64))
    args = (x, list(qt.buffers.values()), str(qt.layout), list(qt.shape), None, "exact;reference")
    torch.library.opcheck(torch.ops.quantry.linear.default, args)


def test_a_graph_mode_sees_the_op(layer, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda v: layer(v))(x)
    assert any("quantry.linear" in str(node.target) for node in graph.graph.nodes)


def test_embedding_looks_up_packed_rows():
    qt = packed(LAYOUTS[0], (48, 64))
    ids = torch.tensor([[0, 47, 3], [3, 3, 1]])
    assert torch.equal(QuantEmbedding(qt, scale=2.0)(ids), 2 * qt.dequantize()[ids])


@pytest.mark.parametrize("bad", [-1, 48])
def test_an_id_outside_the_table_is_an_error(bad):
    with pytest.raises(quantry.KernelError, match=r"outside|out of range"):  # whichever kernel is installed
        QuantEmbedding(packed(LAYOUTS[0], (48, 64)))(torch.tensor([bad]))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = QuantEmbedding(packed(LAYOUTS[0], (48, 64)))
        self.head = TiedHead(self.embed)


def test_a_tied_head_shares_the_codes_through_every_copy(x):
    model = Tied()
    y = model.head(x)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).to("cpu")):  # noqa: S301
        assert clone.head.owner is clone.embed
        assert torch.equal(clone.head(x), y)
    assert sorted(model.state_dict()) == ["embed._extra_state", "embed.codes", "embed.scales"]


def test_experts_gather_their_own_rows():
    qt = packed("affine:b4,g32,in,mid,f16", (3, 16, 64))
    bias = torch.randn(3, 16)
    x, ids = torch.randn(4, 1, 64), torch.tensor([[0, 2], [1, 0], [2, 2], [1, 0]])
    y = QuantExperts(qt, bias)(x, ids)
    weight = qt.dequantize()
    want = torch.einsum("tk,tjnk->tjn", x[:, 0].double(), weight[ids].double()) + bias[ids].double()
    torch.testing.assert_close(y, want.float())


def test_without_a_kernel_nothing_is_dequantized_behind_the_users_back(monkeypatch, x):
    monkeypatch.delenv("QUANTRY_REFERENCE")
    with pytest.raises(NoKernelError, match="reference"):
        QuantLinear(packed("affine:b7,g32,in,int,f32", (48, 64)))(x)  # no dist of ours has kernels for 7 bits


def test_numerics_and_pins_survive_preparation(x):
    layer = QuantLinear(packed(LAYOUTS[0], (48, 64)))
    layer.prepare(numerics="exact", reference=True)
    assert layer._policy == "exact;reference"


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(3, 65), ShapeError),
        (torch.zeros(()), ShapeError),
        (torch.zeros(3, 64, dtype=torch.long), UsageError),
    ],
)
def test_matmul_refuses_what_does_not_fit(x, error):
    with pytest.raises(error):
        quantry.matmul(x, packed(LAYOUTS[0], (48, 64)))


def test_matmul_takes_any_leading_shape():
    qt = packed(LAYOUTS[0], (48, 64))
    for shape in [(64,), (0, 64), (2, 3, 64)]:
        assert quantry.matmul(torch.zeros(shape), qt).shape == (*shape[:-1], 48)

"""Adapted modules add scale · b (a x) to what their base gives, in whatever way the base is run."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import quantry
from quantry import (
    AdaptedEmbedding,
    AdaptedExperts,
    AdaptedLinear,
    Kernel,
    LinearGroup,
    LowRank,
    Numerics,
    QuantEmbedding,
    QuantExperts,
    QuantLinear,
    ShapeError,
    TiedHead,
    hookimpl,
)
from quantry.testing import installed, random_weight

LAYOUT = "affine:b4,g32,in,mid,f16"


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QUANTRY_REFERENCE", "allow")


class Together(Kernel):
    """Multiplies by definition and takes several weights; as a dense kernel adds changes, and counts."""

    name, op, family, device, priority = "together", "linear", "affine", "cpu", 99
    numerics = Numerics()

    def why_not(self, problem):
        return None

    def matmul(self, x, w, layout, shape, bias):
        y = x @ layout.dequantize(dict(zip(layout.buffers(shape), w, strict=True)), shape).T.to(x.dtype)
        return y if bias is None else y + bias

    def bind_group(self, weights):
        return lambda x: [self.matmul(x, w, layout, shape, None) for w, layout, shape in weights]


class Adds(Kernel):
    name, op, family, device, numerics = "adds", "linear", "dense", "cpu", Numerics()
    calls = 0

    def why_not(self, problem):
        return "adds only"

    def bind_low_rank(self, a, bs):
        def add(x, ys):
            type(self).calls += 1
            inner = (x.reshape(1, -1) @ a.T).split([len(b) for b in bs], 1)
            for y, part, b in zip(ys, inner, bs, strict=True):
                y.view(1, -1).add_(part @ b)

        return add


class Plugin:
    @hookimpl
    def quantry_kernels(self):
        return [Together(), Adds()]


@pytest.fixture(params=["torch", "kernel"])
def adding(request):
    """Who adds the changes of one row."""
    Adds.calls = 0
    with installed(Plugin() if request.param == "kernel" else object(), alone=True):
        yield Adds if request.param == "kernel" else None


def packed(shape, seed=0, text=LAYOUT):
    return random_weight(quantry.registry().layout(text), shape, seed)


def change(shape, rank=3, scale=0.5, seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    *stack, rows, columns = shape
    a = torch.randn(*stack, rank, columns, generator=generator)
    return LowRank(a, torch.randn(*stack, rows, rank, generator=generator), scale)


def delta(*changes):
    return sum(c.scale * c.b.double() @ c.a.double() for c in changes)


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def near(found, expected):
    return torch.allclose(found.double(), expected, rtol=0, atol=64 * 2**-24 * expected.abs().max().item())


def plain(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


BASES = {
    "packed": lambda qt: QuantLinear(qt),
    "biased": lambda qt: QuantLinear(qt, torch.linspace(-1, 1, qt.shape[0])),
    "dense": lambda qt: plain(qt.dequantize()),
    "tied": lambda qt: TiedHead(QuantEmbedding(qt)),
}


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64), (5, 64), (2, 3, 64), (0, 64)])
def test_linear_layers(adding, base, shape):
    """Two changes, of ranks 3 and 2 and different scales."""
    qt = packed((48, 64))
    module = BASES[base](qt)
    changes = [change((48, 64)), change((48, 64), 2, -2.0, 1)]
    x = rows(*shape)
    bias = module.bias.double() if base == "biased" else 0
    expected = x.double() @ (qt.dequantize().double() + delta(*changes)).T + bias
    with torch.inference_mode():
        found = AdaptedLinear(module, changes)(x)
    assert found.shape == expected.shape
    assert x.numel() == 0 or near(found, expected)
    assert adding is None or adding.calls == (x.numel() == 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_activations(dtype):
    """Three roundings: of a x, of the base's result, of the sum; a and b are exact in the type."""
    qt = packed((48, 64))
    one = change((48, 64))
    one = one._replace(a=one.a.to(dtype).float(), b=one.b.to(dtype).float())
    module = AdaptedLinear(QuantLinear(qt), [one], dtype)
    x = rows(5, 64).to(dtype)
    inner = x.double() @ one.a.double().T
    expected = x.double() @ (qt.dequantize().double() + delta(one)).T
    unit = torch.finfo(dtype).eps
    size = (
        inner.abs() @ (0.5 * one.b.double()).abs().T + (x.double() @ qt.dequantize().double().T).abs()
    ).max()
    assert (module(x).double() - expected).abs().max() <= 2 * unit * size
    assert module(x).dtype is dtype


def test_embeddings():
    qt = packed((40, 64))
    changes = [change((40, 64)), change((40, 64), 2, seed=1)]
    table = AdaptedEmbedding(QuantEmbedding(qt), changes)
    ids = torch.tensor([[3, 39], [0, 3]])
    expected = (qt.dequantize().double() + delta(*changes))[ids]
    assert near(table(ids), expected)
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (40, 64, None)
    with pytest.raises(quantry.KernelError):
        table(torch.tensor([40]))


def test_a_head_tied_to_an_adapted_embedding_is_not_changed():
    embedding = QuantEmbedding(packed((40, 64)))
    head = TiedHead(embedding)
    before = head(rows(2, 64))
    model = nn.ModuleDict({"table": AdaptedEmbedding(embedding, [change((40, 64))]), "head": head})
    assert torch.equal(model["head"](rows(2, 64)), before)


@pytest.mark.parametrize("spread", [1, 2])
def test_experts(spread):
    """x of one row a token, and of one a chosen expert."""
    qt = packed((3, 32, 64))
    changes = [change((3, 32, 64)), change((3, 32, 64), 2, seed=1)]
    stack = AdaptedExperts(QuantExperts(qt), changes)
    ids = torch.tensor([[0, 2], [2, 2], [1, 0], [0, 0]])
    x = rows(4, spread, 64)
    weight = qt.dequantize().double() + delta(*changes)
    expected = torch.einsum("tknc,tkc->tkn", weight[ids], x.double().expand(4, 2, 64))
    assert near(stack(x, ids), expected)
    assert stack.num_experts == 3


@pytest.mark.parametrize("adapted", [(0,), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_groups(adding, adapted, together, count):
    layers = [QuantLinear(packed((n, 64), n)) for n in (48, 16, 32)]
    changes = {i: change((layers[i].out_features, 64), i + 1, seed=i) for i in adapted}
    modules = [AdaptedLinear(m, [changes[i]]) if i in changes else m for i, m in enumerate(layers)]
    if together:
        AdaptedLinear.lay_together([modules[i] for i in adapted])
    x = rows(count, 64)
    group = LinearGroup(modules)
    with torch.inference_mode():
        found = group(x)
    for i, (y, layer) in enumerate(zip(found, layers, strict=True)):
        weight = layer.storable().dequantize().double()
        assert near(y, x.double() @ (weight + (delta(changes[i]) if i in changes else 0)).T)
    if adding is not None:
        assert adding.calls == (count == 1), "one call for the whole group"


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_group_sees_halves_that_were_replaced(adding, name):
    modules = [AdaptedLinear(QuantLinear(packed((48, 64), n)), [change((48, 64), seed=n)]) for n in (0, 1)]
    group, x = LinearGroup(modules), rows(1, 64)
    with torch.inference_mode():
        group(x)
        modules[1].register_buffer(name, getattr(modules[1], name) * 2)
        for y, module in zip(group(x), modules, strict=True):
            torch.testing.assert_close(y, module(x))
        modules[0](x)
        modules[0].register_buffer(name, getattr(modules[0], name) * 2)
        expected = modules[0].base(x) + x @ modules[0].a.T @ modules[0].b
        torch.testing.assert_close(modules[0](x), expected)


@pytest.mark.parametrize("which", [lambda m: m, lambda m: m.base])
def test_hooks_on_layer_or_base_run(adding, which):
    modules = [AdaptedLinear(QuantLinear(packed((48, 64), n)), [change((48, 64))]) for n in (0, 1)]
    group, seen = LinearGroup(modules), []
    which(modules[1]).register_forward_hook(lambda *given: seen.append(given))
    with torch.inference_mode():
        found = group(rows(1, 64))
    assert len(seen) == 1
    assert torch.equal(found[1], modules[1](rows(1, 64)))


def test_lay_together_keeps_values_and_lies_in_one_storage():
    modules = [AdaptedLinear(QuantLinear(packed((48, 64), n)), [change((48, 64), n + 1)]) for n in (0, 1, 2)]
    odd = AdaptedLinear(QuantLinear(packed((48, 32))), [change((48, 32))])
    before = [m.a.clone() for m in modules]
    AdaptedLinear.lay_together([*modules, odd])
    assert len({m.a.untyped_storage().data_ptr() for m in modules}) == 1
    assert all(torch.equal(m.a, a) for m, a in zip(modules, before, strict=True))
    assert odd.a.untyped_storage().data_ptr() != modules[0].a.untyped_storage().data_ptr()


def test_gradients_reach_x_through_base_and_change():
    qt, one = packed((48, 64)), change((48, 64))
    module = AdaptedLinear(QuantLinear(qt), [one])
    x = rows(3, 64).requires_grad_()
    module(x).sum().backward()
    expected = (qt.dequantize().double() + delta(one)).sum(0).expand(3, 64)
    assert near(x.grad, expected)


def test_results_belong_to_the_caller(adding):
    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))])
    with torch.inference_mode():
        first = module(rows(1, 64))
        kept = first.clone()
        module(2 * rows(1, 64))
    assert torch.equal(first, kept)


def test_compiled_steps_give_the_same(adding):
    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))]).eval()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(rows(3, 64)), module(rows(3, 64)))


def test_meta_and_fake_tensors_have_the_right_shape(adding):
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))])
    module(rows(1, 64))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        assert module(mode.from_tensor(rows(1, 64))).shape == (1, 48)
    assert module.to("meta")(rows(1, 64).to("meta")).shape == (1, 48)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301  our own
def test_copies_work_alone(adding, copied):
    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))])
    x = rows(1, 64)
    with torch.inference_mode():
        before = module(x)
        other = copied(module)
        other.b.zero_()
        assert torch.equal(module(x), before)
        assert torch.allclose(other(x), module.base(x))


def test_state_holds_the_change_beside_the_packed_weight():
    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))])
    other = AdaptedLinear(QuantLinear(packed((48, 64), 5)), [change((48, 64), seed=5)])
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    x = rows(1, 64)
    assert torch.equal(other(x), module(x))


def test_another_dtype_of_activations_after_the_first_call(adding):
    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))])
    with torch.inference_mode():
        module(rows(1, 64))
        narrow = module(rows(1, 64).bfloat16())
        assert narrow.dtype is torch.bfloat16
        assert torch.allclose(narrow.float(), module(rows(1, 64)), rtol=0.05, atol=0.5)


def test_a_kernel_that_is_disabled_adds_nothing(adding, monkeypatch):
    monkeypatch.setenv("QUANTRY_DISABLE", "adds")
    module = AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))])
    with torch.inference_mode():
        module(rows(1, 64))
    assert adding is None or adding.calls == 0


@pytest.mark.parametrize("kind", [AdaptedLinear, AdaptedEmbedding])
def test_the_change_of_another_shape_is_named(kind):
    base = (QuantLinear if kind is AdaptedLinear else QuantEmbedding)(packed((48, 64)))
    with pytest.raises(ShapeError, match=r"\[48, 65\].*\[48, 64\]"):
        kind(base, [change((48, 64)), change((48, 65))])


def test_preparing_a_model_prepares_the_bases():
    model = nn.Sequential(AdaptedLinear(QuantLinear(packed((48, 64))), [change((48, 64))]))
    quantry.prepare(model, torch.float32, "exact", True)
    assert model[0].base.kernels["linear"]

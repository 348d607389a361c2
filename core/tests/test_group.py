"""A group of linear modules gives what its modules give, whoever multiplies."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
from torch import nn

import quantry
from quantry import Kernel, LinearGroup, Numerics, QuantizedTensor, QuantLinear, hookimpl
from quantry.testing.installed import installed


class Together(Kernel):
    """Multiplies by definition, counts its calls, and takes several weights at once."""

    name, op, family, device, priority = "together", "linear", "affine", "cpu", 99
    numerics = Numerics()
    alone: ClassVar[int] = 0
    grouped: ClassVar[int] = 0

    def why_not(self, problem):
        return "4 rows at most" if problem.rows > 4 else None

    def matmul(self, x, w, layout, shape, bias):
        type(self).alone += 1
        y = x @ layout.dequantize(dict(zip(layout.buffers(shape), w, strict=True)), shape).T.to(x.dtype)
        return y if bias is None else y + bias

    def bind_group(self, weights):
        held = [
            layout.dequantize(dict(zip(layout.buffers(shape), w, strict=True)), shape)
            for w, layout, shape in weights
        ]

        def call(x):
            type(self).grouped += 1
            return [x @ weight.T for weight in held]

        return call


class Plugin:
    @hookimpl
    def quantry_kernels(self):
        return [Together()]


@pytest.fixture(autouse=True)
def together(monkeypatch):
    """A registry with the kernel; more rows than it takes run by the reference."""
    monkeypatch.setenv("QUANTRY_REFERENCE", "allow")
    Together.alone = Together.grouped = 0
    with installed(Plugin(), alone=True):
        yield


def linear(rows, bits=4, seed=0, bias=None, columns=64):
    generator = torch.Generator().manual_seed(seed)
    layout = quantry.registry().layout(f"affine:b{bits},g32,in,int,f32")
    buffers = {}
    for name, spec in layout.buffers((rows, columns)).items():
        if spec.dtype == "u8":
            buffers[name] = torch.randint(0, 256, spec.shape, dtype=torch.uint8, generator=generator)
        else:
            buffers[name] = torch.rand(spec.shape, generator=generator) * 0.1
    return QuantLinear(QuantizedTensor(layout, (rows, columns), buffers), bias)


@pytest.fixture
def modules():
    return [linear(48), linear(16, bits=8, seed=1), linear(32, bits=2, seed=2)]


@pytest.fixture
def x():
    return torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(9))


def assert_equal_to_modules(group, x):
    Together.alone = Together.grouped = 0
    found, calls = group(x), (Together.alone, Together.grouped)
    expected = [module(x) for module in group.modules]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    return calls


def test_one_call_serves_weights_of_different_layouts(modules, x):
    assert assert_equal_to_modules(LinearGroup(modules), x) == (0, 1)


@pytest.mark.parametrize("shape", [(64,), (1, 64), (4, 64), (2, 1, 64), (0, 64)])
def test_any_leading_shape(modules, shape):
    assert assert_equal_to_modules(LinearGroup(modules), torch.ones(shape)) == (0, 1)


def test_row_counts_that_the_kernel_declines_run_one_by_one(modules):
    assert assert_equal_to_modules(LinearGroup(modules), torch.ones(5, 64)) == (0, 0)


def test_results_belong_to_the_x_that_was_given(modules, x):
    group = LinearGroup(modules)
    first = [y.clone() for y in group(x)]
    x.mul_(2)
    for a, b in zip(group(x), first, strict=True):
        torch.testing.assert_close(a, 2 * b)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0]._buffers.update({m[0]._names[0]: torch.zeros_like(m[0]._w[0])}),
        lambda m: m[1].load_state_dict(linear(16, bits=8, seed=5).state_dict()),
        lambda m: m[2].prepare(),
        lambda m: m[0].to("cpu", torch.float64).to(torch.float32),
    ],
    ids=["another buffer", "loaded", "prepared", "moved"],
)
def test_a_weight_that_changed_is_seen(modules, x, change):
    group = LinearGroup(modules)
    group(x)
    change(modules)
    assert_equal_to_modules(group, x)


def test_a_copy_multiplies_by_its_own_weights(modules, x):
    group = LinearGroup(modules)
    group(x)
    twin = copy.deepcopy(group)
    with torch.no_grad():
        twin.modules[0]._w[0].zero_()
    assert_equal_to_modules(twin, x)
    assert_equal_to_modules(group, x)
    assert not torch.equal(twin(x)[0], group(x)[0])


def test_hooks_are_called(modules, x):
    seen = []
    modules[1].register_forward_hook(lambda module, given, y: seen.append(module))
    assert assert_equal_to_modules(LinearGroup(modules), x)[1] == 0
    assert seen == [modules[1]] * 2


def test_gradients_reach_x(modules, x):
    x.requires_grad_()
    sum(y.sum() for y in LinearGroup(modules)(x)).backward()
    expected = sum(m.storable().dequantize().sum(0) for m in modules)
    torch.testing.assert_close(x.grad.flatten(), expected)


def test_tracers_see_every_product(modules, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(LinearGroup(modules))(x)
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(torch.ops.quantry.linear.default) == 3


@pytest.mark.parametrize(
    "others",
    [
        lambda: [nn.Linear(64, 8)],
        lambda: [linear(8, bias=torch.ones(8))],
    ],
    ids=["plain", "bias"],
)
def test_modules_that_cannot_be_grouped_run_alone(modules, x, others):
    assert assert_equal_to_modules(LinearGroup([*modules, *others()]), x)[1] == 0


def test_other_dtypes_run_alone(modules, x):
    group = LinearGroup(modules)
    found = group(x.double())
    assert Together.grouped == 0
    assert [y.dtype for y in found] == [torch.float64] * 3

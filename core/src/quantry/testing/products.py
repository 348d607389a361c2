"""What a packed weight does in use, against its dequantized numbers in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import quantry
from quantry.kernel import Numerics
from quantry.nn import QuantEmbedding, QuantExperts, QuantLinear
from quantry.tensor import QuantizedTensor
from quantry.testing.tolerance import product_bound, rounding

__all__ = ["check_experts", "check_modules", "check_pinned", "check_products"]

_EXACT = Numerics(accumulate="f32", activations="exact", deterministic=True)


def check_products(qt: QuantizedTensor, numerics: Numerics) -> None:
    """`quantry.matmul` of several numbers of rows, on the kernels that the resolver takes."""
    dense = qt.dequantize().double()
    for rows in (1, 3, 20):
        x = torch.randn(rows, qt.shape[1])
        y, want = quantry.matmul(x, qt), x.double() @ dense.T
        limit = product_bound(x.double(), dense, numerics)
        assert ((y - want).abs() <= limit + rounding(want, torch.float32)).all(), list(qt.shape)


def check_modules(qt: QuantizedTensor) -> QuantLinear:
    """A prepared QuantLinear keeps panels and gives the weight back; an embedding gives its rows."""
    linear = QuantLinear(qt)
    linear.prepare()
    assert linear.layout.family.endswith("_panel")
    assert linear.storable().layout == qt.layout
    assert all(torch.equal(linear.storable().buffers[n], b) for n, b in qt.buffers.items())
    ids = torch.tensor([[0, qt.shape[0] - 1], [5, 5]])
    assert torch.equal(QuantEmbedding(qt)(ids), qt.dequantize()[ids])
    return linear


def check_experts(qt: QuantizedTensor) -> None:
    """QuantExperts of a stack, two experts a token."""
    experts, _, k = qt.shape
    x, ids = torch.randn(5, 1, k), torch.randint(0, experts, (5, 2))
    y = QuantExperts(qt)(x, ids)
    want = torch.einsum("tsk,tsnk->tsn", x.double().expand(5, 2, k), qt.dequantize().double()[ids])
    assert torch.allclose(y.double(), want, rtol=0, atol=2**-16 * want.abs().max().item())


def check_pinned(qt: QuantizedTensor, stack: QuantizedTensor | None, kernels: Sequence[str]) -> None:
    """Products, and with a stack of matrices modules too, on these kernels only, activations as given.

    kernels: of linear, experts and embedding.
    """
    dense = qt.dequantize()
    with quantry.use(*kernels, numerics="exact"):
        for rows in (1, 3, 17):
            x = torch.randn(rows, qt.shape[1], generator=torch.Generator().manual_seed(rows))
            _assert_near(quantry.matmul(x, qt), x, dense)
        if stack is None:
            return
        x, ids = torch.randn(5, qt.shape[1]), torch.tensor([[2], [0], [1], [1], [0]])
        linear, experts, embedding = QuantLinear(qt), QuantExperts(stack), QuantEmbedding(qt)
        last = qt.shape[0] - 1
        found, mixed, looked_up = linear(x), experts(x[:, None], ids), embedding(torch.tensor([3, last]))
    assert {k.name for k in linear.kernels["linear"] if k is not None} == {kernels[0]}
    assert torch.equal(looked_up, dense[[3, last]])
    _assert_near(found, x, dense)
    for token, expert in enumerate(ids.flatten().tolist()):
        _assert_near(mixed[token], x[token : token + 1], stack.dequantize()[expert])


def _assert_near(y: torch.Tensor, x: torch.Tensor, dense: torch.Tensor) -> None:
    off = (y - x.double() @ dense.double().T).abs()
    assert (off <= product_bound(x.double(), dense.double(), _EXACT)).all()

"""Random weights in panels, packed by torch, and what float64 says about products with them."""

from __future__ import annotations

from functools import lru_cache

import torch
from grouped_library import BY_NAME
from torch import Tensor

from quantry import GroupedAffine, Kernel, Layout, QuantizedTensor, Shape, pack_codes, unpack_codes
from quantry.layouts.codebook_panel import CodebookPanel
from quantry.layouts.panel import PanelLayout
from quantry.layouts.tables import CODEBOOKS
from quantry.panels.conversions import panels_of
from quantry.testing import random_weight
from quantry.testing.calls import total_bound
from quantry.testing.tolerance import product_bound

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TINY = 1e-30  # products of subnormal numbers have no relative precision
LARGEST = 127  # what the int8 path of a codebook multiplies its numbers by


def panels(layout: Layout) -> PanelLayout:
    made = panels_of(layout)
    assert made is not None
    return made


def by_torch(source: QuantizedTensor) -> QuantizedTensor:
    """The panels of a weight, by their definition instead of native code."""
    layout, shape = panels(source.layout), source.shape
    return QuantizedTensor(layout, shape, layout.packed(source.buffers, shape))


def clean(qt: QuantizedTensor) -> QuantizedTensor:
    """The same weight with zeros in the bits that belong to no code, as a writer leaves them."""
    layout = qt.layout
    if getattr(layout, "element", None) == "e2m1":
        bits = 4
    elif isinstance(layout, GroupedAffine) and layout.axis == "in":
        bits = layout.bits
    else:
        return qt
    codes = pack_codes(unpack_codes(qt.buffers["codes"], bits, qt.shape[-1]), bits)
    return QuantizedTensor(layout, qt.shape, {**qt.buffers, "codes": codes})


@lru_cache(maxsize=64)
def drawn(layout: Layout, shape: Shape, seed: int = 0) -> tuple[QuantizedTensor, Tensor]:
    """A weight in panels, and its float64 values."""
    source = clean(random_weight(layout, shape, seed))
    return by_torch(source), source.dequantize().double()


def activations(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers with a few outliers."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 1 / 64, 20 * x, x).to(dtype)


def rounded_numbers(layout: Layout, w: QuantizedTensor, dense: Tensor) -> Tensor:
    """|w - what the int8 path takes for it|: the numbers of nf4 become multiples of 1/127."""
    if not isinstance(layout, CodebookPanel) or layout.table != "nf4":
        return torch.zeros_like(dense)
    numbers = torch.tensor(CODEBOOKS["nf4"], dtype=torch.float64)
    off = (numbers - (numbers * LARGEST).round() / LARGEST).abs()
    codes = layout.unpacked(layout.codes(w.buffers, w.shape), w.shape).long()
    scales = layout.source.block_scales(layout.sides_of_rows(w.buffers, w.shape)).double().abs()
    by_group = scales.view(*w.shape[:-1], -1).repeat_interleave(layout.group, -1)
    return off[codes] * by_group


def allowed(kernel: Kernel, x: Tensor, w: QuantizedTensor, dense: Tensor) -> Tensor:
    """Bound of the sums, from how the kernel says it rounds."""
    numerics = kernel.numerics_for(w.layout)
    bound = product_bound(x.double(), dense, numerics)
    if numerics.activations != "exact":
        bound = bound + x.double().abs() @ rounded_numbers(w.layout, w, dense).T
    return bound


def multiply(kernel: Kernel, x: Tensor, w: QuantizedTensor, bias: Tensor | None = None) -> Tensor:
    return kernel.matmul(x, list(w.buffers.values()), w.layout, w.shape, bias)


def check_linear(name: str, x: Tensor, w: QuantizedTensor, dense: Tensor, bias: Tensor | None = None) -> None:
    """y = x Wᵀ + bias within the bound."""
    kernel = BY_NAME[name]
    y = multiply(kernel, x, w, bias)
    plain = x.double() @ dense.T
    want = plain if bias is None else plain + bias.double()
    limit = total_bound(want, plain, allowed(kernel, x, w, dense), y.dtype)
    _compare(f"{name} on {w.layout} {list(w.shape)}, {len(x)} rows of {x.dtype}", y, want, limit)


def check_dx(name: str, dy: Tensor, w: QuantizedTensor, dense: Tensor) -> None:
    """dx = dy W within the bound."""
    kernel = BY_NAME[name]
    dx = kernel.linear_dx(dy, list(w.buffers.values()), w.layout, w.shape)
    want = dy.double() @ dense
    limit = total_bound(want, want, product_bound(dy.double(), dense.T, kernel.numerics), dx.dtype)
    _compare(f"{name} on {w.layout} {list(w.shape)}, {len(dy)} rows of {dy.dtype}", dx, want, limit)


def check_rows(name: str, w: QuantizedTensor, dense: Tensor, dtype: torch.dtype) -> None:
    """Every row of the table, some twice, bit for bit."""
    n = w.shape[0]
    ids = torch.tensor([*range(n), 0, n - 1, n // 2])
    y = BY_NAME[name].embedding(ids, list(w.buffers.values()), w.layout, w.shape, dtype)
    same = torch.equal(y, dense[ids].to(torch.float32).to(dtype))
    assert same, f"{name} on {w.layout} {list(w.shape)} gives other numbers than dequantize"


def _compare(where: str, y: Tensor, want: Tensor, limit: Tensor) -> None:
    assert y.shape == want.shape, f"{where}: shape {list(y.shape)}"
    excess = torch.nan_to_num((y.double() - want).abs() - limit - TINY, nan=torch.inf)
    if excess.numel() and excess.max() > 0:
        worst = int(excess.argmax())
        row, column = divmod(worst, y.shape[1])
        raise AssertionError(
            f"{where}: [{row}, {column}] is {y.flatten()[worst].item()!r}, float64 says"
            f" {want.flatten()[worst].item()!r} ± {limit.flatten()[worst].item():.3g};"
            f" {int((excess > 0).sum())} of {excess.numel()} are off"
        )

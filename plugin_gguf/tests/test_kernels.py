"""The native kernels against float64 on every instruction set of this machine.

The weights are decoded by the definition, which test_oracle.py compares with llama.cpp. The tolerance is
this bound: activations are rounded by at most max|x| / 254 of their block, sums are f32. Formats with
minimums add s·q and m apart, so their sums are bounded by |s·q| + |m| instead of |s·q - m|.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_weights import KINDS, Weight, rounding_block, weight

from quantry import KernelError, NativeLibrary, PluginError, UsageError
from quantry_gguf import native
from quantry_gguf.kernels import PanelExact, PanelInt8
from quantry_gguf.panel import PLANES, GgmlPanel
from quantry_gguf.types import BY_NAME

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# f32 sums of columns are held to quantry.testing's K / 32; these types have always met one addition a block
TIGHT = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")


def targets() -> list[str]:
    """Every instruction set that runs here, so that one process walks them all."""
    if native.why_not() is not None:
        return []
    return [name for i, name in enumerate(native.TARGETS) if native.library().quantry_gguf_target_runs(i)]


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> Iterator[int]:
    native.set_target(request.param)
    yield native.target()
    native.set_target(None)


def rounding(dtype: torch.dtype, y: np.ndarray) -> np.ndarray:
    """Half a unit of the result's dtype, subnormal results included; f32 is part of the bound of sums."""
    relative, smallest = {torch.float16: (2.0**-11, 2.0**-25), torch.bfloat16: (2.0**-8, 0.0)}.get(
        dtype, (0.0, 0.0)
    )
    return relative * np.abs(y) + smallest


def pointer(t: torch.Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def linear(
    kind: str, exact: bool, x: torch.Tensor, w: Weight, bias: torch.Tensor | None = None, threads: int = 2
) -> torch.Tensor:
    m, columns = x.shape
    rows = w.dense.shape[0]
    lib = native.library()
    full = described(kind, exact, w, rows, columns)
    need = ctypes.c_int64()
    listed = (ctypes.c_void_p * 1)(ctypes.addressof(full))
    status = lib.quantry_gguf_linear_scratch(ctypes.addressof(listed), 1, m, threads, ctypes.addressof(need))
    assert status == 0
    scratch = torch.full((need.value,), 0xA5, dtype=torch.uint8)
    y = torch.full((m, rows), float("nan"), dtype=x.dtype)
    status = lib.quantry_gguf_linear_one(
        ctypes.addressof(full), DTYPES[x.dtype], m, x.data_ptr(), x.stride(0), pointer(bias), y.data_ptr(),
        threads, scratch.data_ptr(), need.value,
    )  # fmt: skip
    assert status == 0
    return y


def described(kind: str, exact: bool, w: Weight, rows: int, columns: int) -> native.BoundLinear:
    return native.BoundLinear(
        native.target(), BY_NAME[kind].id, exact, 0, rows, columns, *w.addresses,
    )  # fmt: skip


def bound(kind: str, exact: bool, x: np.ndarray, w: Weight, y: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Largest allowed |Δ| per output, from how the kernel rounds."""
    block = rounding_block(kind)
    rounded = 0.0
    if not exact:
        amax = np.abs(x).reshape(len(x), x.shape[1] // block, block).max(-1)
        rounded = (amax / 254) @ np.abs(w.dense).reshape(len(w.dense), -1, block).sum(-1).T * (1 + 1e-5)
    adds = x.shape[1] / (32 if exact and kind not in TIGHT else block)
    summed = 2.0**-23 * (2 + adds) * (np.abs(x) @ w.terms.T)
    return rounded + summed + rounding(dtype, y) + 1e-30


def check(kind: str, exact: bool, x: torch.Tensor, w: Weight, bias: torch.Tensor | None = None) -> None:
    got = linear(kind, exact, x, w, bias).double().numpy()
    wide = x.double().numpy()
    want = wide @ w.dense.T + (0 if bias is None else bias.double().numpy())
    excess = np.abs(got - want) - bound(kind, exact, wide, w, want, x.dtype)
    if bias is not None:
        excess -= 2.0**-23 * np.abs(bias.numpy())
    assert got.shape == want.shape
    assert not np.isnan(got).any()
    assert excess.max(initial=-1.0) <= 0


def activations(m: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(m + columns).standard_normal((m, columns))).to(dtype)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_rows_and_outputs(target: int, kind: str, exact: bool) -> None:
    block = BY_NAME[kind].block
    for m in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33):
        for rows, blocks in ((1, 1), (15, 2), (16, 3), (17, 1), (33, 3), (48, 2)):
            check(kind, exact, activations(m, blocks * block), weight(kind, rows, blocks * block))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_element_types_strides_and_bias(target: int, kind: str, exact: bool, dtype: torch.dtype) -> None:
    w = weight(kind, 33, 768)
    bias = torch.linspace(-1, 1, 33)
    for m in (1, 5, 17):
        wide = activations(m, 768 + 40, dtype)
        check(kind, exact, wide[:, 3 : 3 + 768], w, bias)  # rows of 808 elements, first element off by 3


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_take_several_passes(kind: str) -> None:
    check(kind, True, activations(1100, 256), weight(kind, 33, 256))
    check(kind, False, activations(1100, 256), weight(kind, 33, 256))


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_zero_subnormal_and_large(target: int, kind: str) -> None:
    block = BY_NAME[kind].block
    for magnitude in (0.0, 6e-8, 60.0):  # 6e-8 is the smallest f16
        w = weight(kind, 17, 2 * block, magnitude)
        for exact in (True, False):
            check(kind, exact, activations(3, 2 * block), w)
            check(kind, exact, activations(17, 2 * block), w)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_any_size(target: int, kind: str) -> None:
    """Blocks of zeros, of the smallest floats, of huge ones, and an outlier among small ones."""
    block = max(BY_NAME[kind].block, 32)
    x = activations(6, 3 * block)
    x[0], x[1, :block], x[2] = 0, 0, x[2] * 1e-41
    x[3, 5], x[4] = 3e4, x[4] * 1e30
    check(kind, True, x, weight(kind, 17, 3 * block))
    check(kind, False, x, weight(kind, 17, 3 * block))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "int8"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_k", "q6_k"])
def test_a_broken_activation_shows_in_its_row_only(target: int, kind: str, exact: bool, value: float) -> None:
    for m in (4, 20):
        x = activations(m, 512)
        x[2, 300] = value
        y = linear(kind, exact, x, weight(kind, 17, 512))
        assert not torch.isfinite(y[2]).any()
        assert torch.isfinite(y[[i for i in range(m) if i != 2]]).all()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(target: int, kind: str, exact: bool) -> None:
    w = weight(kind, 333, 1024)
    for m in (1, 7, 40):
        x = activations(m, 1024)
        one = linear(kind, exact, x, w, threads=1)
        for threads in (2, 3, 8):
            assert torch.equal(linear(kind, exact, x, w, threads=threads), one)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_to_x(target: int, kind: str) -> None:
    block = BY_NAME[kind].block
    for m in (0, 1, 3, 13, 40):
        for rows, blocks in ((1, 1), (17, 3), (81, 2), (333, 5)):
            w = weight(kind, rows, blocks * block)
            for dtype in DTYPES:
                check_backward(kind, activations(m, rows + 5, dtype)[:, 2 : 2 + rows], w)


def check_backward(kind: str, dy: torch.Tensor, w: Weight) -> None:
    dx = backward(kind, dy, w)
    wide = dy.double().numpy()
    want = wide @ w.dense
    # a sum of f32 products of decoded weights, one after the other
    first = 2 if kind in TIGHT else 4
    allowed = 2.0**-23 * (first + dy.shape[1] / 32) * (np.abs(wide) @ np.abs(w.dense)) + rounding(
        dy.dtype, want
    )
    assert (np.abs(dx.double().numpy() - want) - allowed).max(initial=-1.0) <= 1e-30
    assert torch.equal(dx, backward(kind, dy, w, threads=1))


def backward(kind: str, dy: torch.Tensor, w: Weight, threads: int = 3) -> torch.Tensor:
    m, rows = dy.shape
    columns = w.dense.shape[1]
    scratch, size = native.scratch("linear_dx", native.target(), m, rows, threads)
    dx = torch.full((m, columns), float("nan"), dtype=dy.dtype)
    status = native.library().quantry_gguf_linear_dx(
        native.target(), BY_NAME[kind].id, DTYPES[dy.dtype], m, rows, columns, dy.data_ptr(), dy.stride(0),
        *w.addresses, dx.data_ptr(), threads, scratch.data_ptr(), size,
    )  # fmt: skip
    assert status == 0
    return dx


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_embedding_rows_equal_the_definition(target: int, kind: str, dtype: torch.dtype) -> None:
    w = weight(kind, 37, 768)
    ids = torch.tensor([0, 36, 16, 15, 16, 31, 5] * 9)
    want = torch.from_numpy(w.dense[ids.numpy()]).float().to(dtype)
    assert torch.equal(embedded_from_rows(kind, ids, w, dtype), want)
    if kind in PLANES:
        assert torch.equal(embedded(kind, ids, w, dtype), want)


@pytest.mark.parametrize("wrong", [-1, 37, 1 << 62, -(1 << 63)])
def test_embedding_refuses_ids_out_of_range(target: int, wrong: int) -> None:
    w = weight("q4_k", 37, 768)
    for look_up in (embedded, embedded_from_rows):
        with pytest.raises(KernelError, match="a row index is out of range"):
            look_up("q4_k", torch.tensor([0, wrong]), w, torch.float32)


def embedded(kind: str, ids: torch.Tensor, w: Weight, dtype: torch.dtype) -> torch.Tensor:
    rows, columns = w.dense.shape
    y = torch.full((len(ids), columns), float("nan"), dtype=dtype)
    status = native.library().quantry_gguf_embedding(
        native.target(), BY_NAME[kind].id, DTYPES[dtype], ids.data_ptr(), len(ids), rows, columns,
        *w.addresses, y.data_ptr(), 2,
    )  # fmt: skip
    if status:
        native.fail(status, "embedding")
    return y


def embedded_from_rows(kind: str, ids: torch.Tensor, w: Weight, dtype: torch.dtype) -> torch.Tensor:
    rows, columns = w.dense.shape
    y = torch.full((len(ids), columns), float("nan"), dtype=dtype)
    status = native.library().quantry_gguf_embedding_rows(
        native.target(), BY_NAME[kind].id, DTYPES[dtype], ids.data_ptr(), len(ids), rows, columns,
        w.blocks.ctypes.data, w.blocks.nbytes, y.data_ptr(), 2,
    )  # fmt: skip
    if status:
        native.fail(status, "embedding_rows")
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_dense_weights_of_16_bits(target: int, kind: torch.dtype, dtype: torch.dtype) -> None:
    bias = torch.linspace(-1, 1, 35)
    for m, rows, columns in ((0, 3, 8), (1, 35, 100), (3, 1, 1), (5, 4, 64), (17, 35, 77), (2, 6, 0)):
        w, x = activations(rows, columns).to(kind), activations(m, columns + 3, dtype)[:, 1 : 1 + columns]
        y = torch.full((m, rows), float("nan"), dtype=dtype)
        scratch, size = native.scratch("dense", native.target(), DTYPES[dtype], m, columns)
        status = native.library().quantry_gguf_dense(
            native.target(), DTYPES[kind], DTYPES[dtype], m, rows, columns, x.data_ptr(), x.stride(0),
            w.data_ptr(), w.nbytes, bias.data_ptr(), y.data_ptr(), 2, scratch.data_ptr(), size,
        )  # fmt: skip
        assert status == 0
        wide, dense, shift = x.double().numpy(), w.double().numpy(), bias[:rows].double().numpy()
        want = wide @ dense.T + shift
        sums = 2.0**-23 * (2 + columns / 32) * (np.abs(wide) @ np.abs(dense).T + np.abs(shift))
        excess = np.abs(y.double().numpy() - want) - sums - rounding(dtype, want)
        assert excess.max(initial=-1.0) <= 1e-30


def test_sizes_that_do_not_agree_return_a_status() -> None:
    w, x, y = weight("q4_k", 33, 512), activations(3, 512), torch.empty(3, 33)
    full = described("q4_k", False, w, 33, 512)
    listed = (ctypes.c_void_p * 1)(ctypes.addressof(full))
    scratch, need = native.scratch("linear", ctypes.addressof(listed), 1, 3, 1)
    size = full.plane_bytes
    good = [
        ctypes.addressof(full), 0, 3, x.data_ptr(), 512, None, y.data_ptr(), 1, scratch.data_ptr(), need
    ]  # fmt: skip
    call = native.library().quantry_gguf_linear_one
    assert call(*good) == 0
    bad = {
        1: (3, -1),
        2: (-1, 1 << 60),
        3: (None,),
        4: (511, -5),
        6: (None,),
        8: (None,),
        9: (0, need - 65, -1),
    }
    for position, values in bad.items():
        for value in values:
            arguments = list(good)
            arguments[position] = value
            assert call(*arguments) in range(1, 6), (position, value)
    lies = {
        "target": (9, -1),
        "type": (10000, -3),
        "rows": (-1, 32, 1 << 62),
        "columns": (-256, 511, 256, 1 << 62),
        "codes": (None,),
        "meta": (None,),
        "plane_bytes": (0, size - 1, size + 1),
    }
    for field, values in lies.items():
        for value in values:
            wrong = native.BoundLinear.from_buffer_copy(full)
            setattr(wrong, field, value)
            assert call(ctypes.addressof(wrong), *good[1:]) in range(1, 6), (field, value)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("m", [0, 1, 3, 40])
def test_a_group_of_weights_gives_what_each_gives_alone(exact: bool, m: int) -> None:
    kinds = {"q4_k": 48, "q6_k": 33, "q8_0": 16}
    parts = {kind: weight(kind, rows, 512) for kind, rows in kinds.items()}
    x = activations(m, 512)
    kernel = (PanelExact if exact else PanelInt8)()
    group = kernel.bind_group(
        [(list(w.planes.values()), GgmlPanel(kind), (kinds[kind], 512)) for kind, w in parts.items()]
    )
    assert group is not None
    for y, (kind, w) in zip(group(x), parts.items(), strict=True):
        assert torch.equal(y, linear(kind, exact, x, w))


def test_a_group_may_mix_panels_and_file_order() -> None:
    parts = {kind: weight(kind, 33, 512) for kind in ("iq2_xs", "q4_k", "tq1_0", "q1_0")}
    x = activations(5, 512)
    bound = [described(kind, False, w, 33, 512) for kind, w in parts.items()]
    listed = (ctypes.c_void_p * len(bound))(*(ctypes.addressof(b) for b in bound))
    scratch, need = native.scratch("linear", ctypes.addressof(listed), len(bound), 5, 2)
    ys = [torch.empty(5, 33) for _ in bound]
    to = (ctypes.c_void_p * len(bound))(*(y.data_ptr() for y in ys))
    status = native.library().quantry_gguf_linear(
        ctypes.addressof(listed), len(bound), 0, 5, x.data_ptr(), 512, None, ctypes.addressof(to), 2,
        scratch.data_ptr(), need,
    )  # fmt: skip
    assert status == 0
    for y, (kind, w) in zip(ys, parts.items(), strict=True):
        assert torch.equal(y, linear(kind, False, x, w))


def test_file_order_has_no_planes_to_pack_or_look_up() -> None:
    w = weight("iq3_s", 17, 512)
    codes, _, _, size = w.addresses
    out = torch.zeros(size, dtype=torch.uint8)
    pack = native.library().quantry_gguf_pack
    assert pack(native.target(), 21, 1, 17, 512, codes, size, out.data_ptr(), None, None, size, 1) == 2
    with pytest.raises(KernelError, match="no native kernel for this block type"):
        embedded("iq3_s", torch.tensor([0]), w, torch.float32)


def test_a_group_needs_equal_columns() -> None:
    small, large = weight("q8_0", 16, 256), weight("q8_0", 16, 512)
    members = [(list(w.planes.values()), GgmlPanel("q8_0"), tuple(w.dense.shape)) for w in (small, large)]
    assert PanelExact().bind_group(members) is None


def test_an_unknown_instruction_set_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"instruction set 'mmx' does not run here\nChoose one of scalar"):
        native.set_target("mmx")
    native.set_target(None)


def test_a_forked_child_runs_on_one_thread() -> None:
    """The child has lost the pool's threads: waiting for them would hang."""
    w, x = weight("q8_0", 512, 1024), activations(1, 1024)
    want = linear("q8_0", True, x, w)  # the parent has a pool now
    child = os.fork()
    if child == 0:
        same = native.threads() == 1 and torch.equal(
            linear("q8_0", True, x, w, threads=native.threads()), want
        )
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class OtherRuntime:
    """A library that bound an OpenMP runtime of its own."""

    def quantry_gguf_openmp_address(self) -> int:
        return ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value or 0


def test_a_second_openmp_runtime_is_named_and_means_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.LIBRARY, "_one_thread", False)
    with pytest.warns(
        RuntimeWarning, match=r"two OpenMP runtimes are loaded: .*libc.* by quantry-gguf, .*gomp.* by torch"
    ):
        native.LIBRARY._share_openmp(OtherRuntime())  # type: ignore[arg-type]
    assert native.threads() == 1


def test_a_missing_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    hollow = NativeLibrary("hollow", "hollow_cpu", "quantry_hollow", "quantry-hollow")
    assert hollow.why_not() == "quantry-hollow was installed without its native library; reinstall its wheel"
    with pytest.raises(PluginError, match="without its native library"):
        hollow.library()

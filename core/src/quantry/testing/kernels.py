"""Conformance of a kernel: the numbers of `dequantize`, for everything it does not decline."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import unittest
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch
from torch import Tensor

from quantry.dtypes import torch_dtype
from quantry.errors import KernelError, NoKernelError, QuantryError
from quantry.hookspecs import hookimpl
from quantry.kernel import Kernel, NumericsMode, Op, Problem
from quantry.layout import Layout, Shape
from quantry.layouts import Dense
from quantry.plugins import registry
from quantry.policy import Policy, applied
from quantry.resolve import resolve
from quantry.tensor import QuantizedTensor
from quantry.testing.calls import CALLS, Call, total_bound
from quantry.testing.installed import installed
from quantry.testing.running import on_threads
from quantry.testing.suite import Suite, assert_pure_import, assert_sentence
from quantry.testing.weights import known_layouts, random_weight

__all__ = ["KernelSuite", "why_nothing_is_accepted"]

_ROWS = {"linear": (1, 4, 16, 64), "linear_dx": (1, 4, 16, 64), "embedding": (1,), "experts": (1, 4, 16)}
_COMPANION = {  # serves the row counts that a kernel under test declines: an op needs one for every count
    "linear": "reference",
    "linear_dx": "reference.dx",
    "embedding": "reference.embedding",
    "experts": "core.experts_loop",
}
_THREADS = 8
_TRIES = 8192  # problems put to a kernel in search of those it accepts


class KernelSuite(Suite):
    """Subclass it and name a kernel; problems are drawn from what it does not decline.

    ```python
    class TestTern(KernelSuite):
        kernel = TernaryGemv()
    ```
    layouts: what to try; () is every known layout of the family. max_cases bounds the time; the choice
    is the same in every run. Override `weight` where random packed values need care, `tolerance` where
    `numerics` cannot say how the kernel rounds. A kernel of an absent device is skipped, with the reason.
    """

    kernel: ClassVar[Kernel]
    layouts: ClassVar[Sequence[Layout]] = ()
    dtypes: ClassVar[Sequence[str]] = ("f32", "bf16", "f16")
    max_cases: ClassVar[int] = 24

    def weight(self, layout: Layout, shape: Shape, seed: int) -> QuantizedTensor:
        """A packed value to multiply by."""
        return random_weight(layout, shape, seed)

    def tolerance(self, case: Problem, given: tuple[Tensor, ...], dense: Tensor) -> Tensor:
        """How far sums may be off, from the kernel's numerics."""
        return self._call.bound(given, dense, self.kernel.numerics_for(case.layout))

    @property
    def _call(self) -> Call:
        return CALLS[self.kernel.op]

    @property
    def device(self) -> str:
        """Device type the kernel is tried on; "*" runs on the CPU."""
        return "cpu" if self.kernel.device == "*" else self.kernel.device

    def cases(self) -> Sequence[Problem]:
        """Accepted problems, at most `max_cases`, of as many layouts as there is room for."""
        return [p for p, reason in _problems(type(self)) if reason is None]

    def test_it_accepts_something(self) -> None:
        self._need_device()
        reasons = {reason for _, reason in _problems(type(self))}
        assert None in reasons, (
            f"{self.kernel.name} declines every problem drawn, `layouts` can name others:"
            f" {sorted(map(str, reasons))[:3]}"
        )

    def test_equals_the_definition(self, case: Problem) -> None:
        given, qt = self._draw(case)
        self._check(case, given, qt, None)

    def test_adds_the_bias(self, case: Problem) -> None:
        given, qt = self._draw(case)
        if self._call.has_bias:
            self._check(case, given, qt, torch.randn(case.shape[:-1]).to(given[0]))

    def test_takes_strided_inputs(self, case: Problem) -> None:
        given, qt = self._draw(case)
        first, *rest = given
        wide = torch.stack([torch.full_like(first, 7), first, torch.full_like(first, 9)], dim=1)
        self._check(case, (wide[:, 1], *rest), qt, None)  # rows three apart
        if first.is_floating_point():
            columns = first.transpose(0, -1).contiguous().transpose(0, -1)
            self._check(case, (columns, *rest), qt, None)  # columns apart, rows adjacent

    def test_takes_batch_dimensions(self, case: Problem) -> None:
        given, qt = self._draw(case)
        self._check(case, self._call.lead(given, (1, len(given[0]))), qt, None)
        if len(given[0]) % 2 == 0:
            self._check(case, self._call.lead(given, (2, 1, len(given[0]) // 2)), qt, None)

    def test_takes_fewer_rows_than_its_bucket(self, case: Problem) -> None:
        given, qt = self._draw(case)
        less = len(given[0]) - 1
        self._check(case, tuple(g[:less] if g.numel() else g for g in given), qt, None)

    def test_takes_no_rows(self, case: Problem) -> None:
        given, qt = self._draw(case)
        self._check(case, tuple(g[:0] for g in given), qt, None)

    def test_leaves_its_inputs_alone(self, case: Problem) -> None:
        given, qt = self._draw(case)
        before = [t.clone() for t in (*given, *qt.buffers.values())]
        self._run(given, qt, None)
        for after, was in zip((*given, *qt.buffers.values()), before, strict=True):
            assert torch.equal(after, was), f"{self.kernel.name} wrote to an input: {case}"

    def test_runs_in_threads(self) -> None:
        for case in self.cases()[::4]:
            self._check_threads(case)

    def _check_threads(self, case: Problem) -> None:
        given, qt = self._draw(case)
        alone = self._run(given, qt, None)
        with ThreadPoolExecutor(_THREADS) as pool:
            jobs = [pool.submit(self._run, given, qt, None) for _ in range(_THREADS)]
            together = [job.result() for job in jobs]
        with on_threads(_THREADS):
            together.append(self._run(given, qt, None))
        for other in together:
            if self.kernel.numerics_for(case.layout).deterministic:
                same = torch.equal(other, alone)
                assert same, f"{self.kernel.name} says deterministic, threads change its bits: {case}"
            self._compare(case, given, qt, None, other)

    def test_refuses_ids_outside(self, case: Problem) -> None:
        if self.kernel.op not in ("embedding", "experts"):
            return  # takes no ids
        given, qt = self._draw(case)
        which = 0 if self.kernel.op == "embedding" else 1
        for outside in (-1, case.shape[-2] if which == 0 else case.shape[0]):
            wrong = [g.clone() for g in given]
            wrong[which].view(-1)[-1] = outside
            try:
                self._run(tuple(wrong), qt, None)
            except KernelError as e:
                assert_sentence(str(e).splitlines()[0], self.kernel.name)
            else:
                raise AssertionError(f"{self.kernel.name} accepts the id {outside}: {case}")

    def test_refusals_are_sentences(self) -> None:
        self._need_device()
        for problem, reason in _problems(type(self)):
            if reason is not None:
                assert_sentence(reason, f"{self.kernel.name} on {problem}")
        for some in [problem for problem, _ in _problems(type(self))][:1]:
            self._refuse_oddities(some)

    def _refuse_oddities(self, some: Problem) -> None:
        for odd in (
            dataclasses.replace(some, dtype="f64"),
            dataclasses.replace(some, shape=(2, 2, *some.shape)),
            dataclasses.replace(some, rows=0),
            dataclasses.replace(some, layout=Dense("i64")) if self.kernel.family == "*" else some,
        ):
            reason = self.kernel.why_not(odd)  # raising here is the fault
            if reason is not None:
                assert_sentence(reason, f"{self.kernel.name} on {odd}")

    def test_the_op_is_sound(self) -> None:
        """`torch.library.opcheck` of the op this kernel answers, once per dtype."""
        from quantry import ops

        assert ops.linear is torch.ops.quantry.linear.default  # importing ops has registered them
        op = getattr(torch.ops.quantry, self.kernel.op).default
        only = (self.kernel.name, _COMPANION[self.kernel.op])
        policy = Policy("fast", only, reference=True, memory="fast")
        with self._installed():
            for case in {p.dtype: p for p in self.cases()}.values():
                given, qt = self._draw(case)
                why = self._unreachable(case, policy)
                if why is not None:
                    raise unittest.SkipTest(f"the op cannot reach {self.kernel.name} alone: {why}")
                args = self._call.op_args(given, qt, str(policy))
                torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))

    def _unreachable(self, case: Problem, policy: Policy) -> str | None:
        """Why the op has no kernel for some row count in this storage, or None."""
        ops: list[Op] = [self.kernel.op]
        try:
            resolve(case.layout, case.shape, ops, case.dtype, self.device, policy, keep_storage=True)
        except NoKernelError as e:
            return e.problem
        return None

    def test_its_module_imports_no_torch(self) -> None:
        assert_pure_import(type(self.kernel).__module__)

    def _need_device(self) -> None:
        reason = _absent(self.device)
        if reason is not None:
            raise unittest.SkipTest(reason)

    def _draw(self, case: Problem) -> tuple[tuple[Tensor, ...], QuantizedTensor]:
        qt, _ = _drawn(type(self), case.layout, case.shape)
        return tuple(t.to(self.device) for t in self._call.draw(case, seed=case.rows)), qt

    def _run(self, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None) -> Tensor:
        """The kernel's answer, under the strictest numerics it fits: it may resolve other kernels itself."""
        with applied(Policy(_mode(self.kernel, qt.layout), reference=self.kernel.reference)):
            return self._call.run(self.kernel, given, qt, bias)

    def _check(
        self, case: Problem, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None
    ) -> None:
        self._compare(case, given, qt, bias, self._run(given, qt, bias))

    def _compare(
        self, case: Problem, given: tuple[Tensor, ...], qt: QuantizedTensor, bias: Tensor | None, y: Tensor
    ) -> None:
        _, dense = _drawn(type(self), case.layout, case.shape)
        inputs = tuple(g.cpu() for g in given)
        plain = self._call.expected(inputs, dense)
        want = plain if bias is None else plain + _spread(bias.double().cpu(), inputs, plain)
        where = f"{self.kernel.name} on {case}, x {list(given[0].shape)} strides {given[0].stride()}"
        assert y.shape == want.shape, f"{where}: shape {list(y.shape)}, expected {list(want.shape)}"
        assert y.dtype == torch_dtype(case.dtype), f"{where}: gives {y.dtype}"
        if not y.numel():
            return
        allowed = total_bound(want, plain, self.tolerance(case, inputs, dense), y.dtype)
        excess = (y.double().cpu() - want).abs() - allowed
        worst = int(torch.nan_to_num(excess, nan=torch.inf).argmax())
        found, right = y.flatten()[worst].item(), want.flatten()[worst].item()
        assert bool((excess <= 0).all()), (
            f"{where}: output {worst} is {found!r}, float64 says {right!r},"
            f" {self.kernel.numerics_for(case.layout)} allows ±{allowed.flatten()[worst].item():.3g}"
        )

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        """The kernel, and the layout families it is tried on, in the registry."""
        known = [k.name for k in registry().kernels]
        families = {type(p.layout) for p in self.cases()} - set(registry().layouts.values())
        if self.kernel.name in known and not families:
            yield
            return
        with installed(_Gives([] if self.kernel.name in known else [self.kernel], sorted(families, key=str))):
            yield


class _Gives:
    """A plugin of objects at hand."""

    def __init__(self, kernels: Sequence[Kernel], layouts: Sequence[type[Layout]]) -> None:
        self._kernels, self._layouts = kernels, layouts

    @hookimpl
    def quantry_kernels(self) -> Sequence[Kernel]:
        return self._kernels

    @hookimpl
    def quantry_layouts(self) -> Sequence[type[Layout]]:
        return self._layouts


_drawn_weights: dict[tuple[type, Layout, Shape], tuple[QuantizedTensor, Tensor]] = {}
_drawn_problems: dict[type, list[tuple[Problem, str | None]]] = {}


def _drawn(suite: type[KernelSuite], layout: Layout, shape: Shape) -> tuple[QuantizedTensor, Tensor]:
    """A weight on the suite's device, and its float64 values on the CPU: the same for every fact."""
    key = (suite, layout, shape)
    if key not in _drawn_weights:
        this = suite()
        qt = this.weight(layout, shape, 1)
        _drawn_weights[key] = qt.to(this.device), qt.dequantize().double().cpu()
    return _drawn_weights[key]


def _problems(suite: type[KernelSuite]) -> list[tuple[Problem, str | None]]:
    """Problems drawn once for a suite, each with the kernel's refusal or None."""
    if suite not in _drawn_problems:
        _drawn_problems[suite] = _draw_problems(suite)
    return _drawn_problems[suite]


def _draw_problems(suite: type[KernelSuite]) -> list[tuple[Problem, str | None]]:
    kernel, this = suite.kernel, suite()
    if _absent(this.device) is not None:
        return []
    layouts = list(suite.layouts or known_layouts(kernel.family))
    dice = random.Random(kernel.name)
    dice.shuffle(layouts)
    accepted: list[tuple[Problem, str | None]] = []
    declined: list[tuple[Problem, str | None]] = []
    share = max(suite.max_cases // max(len(layouts), 1), 4)
    tries = min(max(_TRIES // max(len(layouts), 1), 16), 256)
    for layout in layouts:
        drawn = list(_of_layout(layout, this))
        dice.shuffle(drawn)
        found = 0
        for problem in drawn[:tries]:
            reason = kernel.why_not(problem)
            (declined if reason else accepted).append((problem, reason))
            found += reason is None
            if found == share:
                break
        if len(accepted) >= suite.max_cases:
            break
    return [*accepted[: suite.max_cases], *declined]


def _of_layout(layout: Layout, suite: KernelSuite) -> Iterator[Problem]:
    info, mode = registry().device(suite.device), _mode(suite.kernel, layout)
    for shape in CALLS[suite.kernel.op].shapes:
        if layout.why_not(shape) is not None:
            continue
        for dtype in suite.dtypes:
            for rows in _ROWS[suite.kernel.op]:
                yield Problem(suite.kernel.op, layout, shape, rows, dtype, info, mode)


def why_nothing_is_accepted(suite: type[KernelSuite]) -> str:
    """The sentence why a suite has no cases: the device is absent, or the kernel's first refusal."""
    absent = _absent(suite().device)
    refusals = [reason for _, reason in _problems(suite) if reason is not None]
    return absent or next(iter(refusals), f"no layout of family {suite.kernel.family!r} is known")


def _mode(kernel: Kernel, layout: Layout) -> NumericsMode:
    return "exact" if kernel.numerics_for(layout).activations == "exact" else "fast"


def _absent(device: str) -> str | None:
    """Why a device type cannot be used here, or None."""
    try:
        registry().device(device)
    except QuantryError as e:
        return f"no {device} device: {e.problem}"
    return None


def _spread(bias: Tensor, given: tuple[Tensor, ...], plain: Tensor) -> Tensor:
    return bias if bias.ndim == 1 else bias[given[1]]

"""What the caller allows: numerics, a restriction to named kernels, the reference path, memory for speed."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from quantry.errors import UsageError, nearest
from quantry.kernel import NumericsMode

__all__ = ["MeasureMode", "Policy", "applied", "check_measure", "check_numerics", "current_policy", "use"]

MeasureMode = Literal["off", "cached", "on"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Travels with a call as text, so that it survives compilation: `str(policy)` and `Policy.parse`.

    numerics: see `quantry.kernel`. only: kernel names that candidates of their own op are restricted to.
    reference: whether the slow tile-wise kernels take part. memory: "fast" lifts the limit on growth by
    repacking. measure: "off" chooses by priority alone; "cached" by times that are known already; "on" times
    what is not known when a model is prepared, never in a call.

    >>> str(Policy("exact", only=("gguf.panel_exact",)))
    'exact;only=gguf.panel_exact'
    """

    numerics: NumericsMode = "strict"
    only: tuple[str, ...] = ()
    reference: bool = False
    memory: Literal["tight", "fast"] = "tight"
    measure: MeasureMode = "cached"

    def __str__(self) -> str:
        parts: list[str] = [self.numerics]
        if self.only:
            parts.append("only=" + ",".join(self.only))
        if self.reference:
            parts.append("reference")
        if self.memory == "fast":
            parts.append("fast-memory")
        if self.measure != "cached":
            parts.append(f"measure={self.measure}")
        return ";".join(parts)

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy written as `text`; the caller's current one for ""."""
        if not text:
            return current_policy()
        numerics, *rest = text.split(";")
        only = next((tuple(r[5:].split(",")) for r in rest if r.startswith("only=")), ())
        measure = next((r[8:] for r in rest if r.startswith("measure=")), "cached")
        return cls(
            check_numerics(numerics),
            only,
            "reference" in rest,
            "fast" if "fast-memory" in rest else "tight",
            check_measure(measure),
        )


def check_numerics(value: str) -> NumericsMode:
    """`value` as a numerics mode. Raises UsageError naming the known ones."""
    modes = get_args(NumericsMode)
    if value not in modes:
        raise UsageError(f"unknown numerics {value!r}", hint=nearest(value, modes))
    mode: NumericsMode = value  # type: ignore[assignment]
    return mode


def check_measure(value: str) -> MeasureMode:
    """`value` as a mode of measuring. Raises UsageError naming the known ones."""
    modes = get_args(MeasureMode)
    if value not in modes:
        raise UsageError(
            f"unknown measure mode {value!r}", hint=f"QUANTRY_MEASURE is one of {', '.join(modes)}."
        )
    mode: MeasureMode = value  # type: ignore[assignment]
    return mode


_override: contextvars.ContextVar[Policy | None] = contextvars.ContextVar("quantry_policy", default=None)


def current_policy() -> Policy:
    """The innermost `use(…)`, else what the environment says: QUANTRY_NUMERICS, QUANTRY_KERNEL,
    QUANTRY_REFERENCE, QUANTRY_MEMORY, QUANTRY_MEASURE."""
    policy = _override.get()
    if policy is not None:
        return policy
    env = os.environ
    only = tuple(part.partition(":")[2] or part for part in env.get("QUANTRY_KERNEL", "").split(",") if part)
    return Policy(
        check_numerics(env.get("QUANTRY_NUMERICS", "strict")),
        only,
        env.get("QUANTRY_REFERENCE", "") == "allow",
        "fast" if env.get("QUANTRY_MEMORY") == "fast" else "tight",
        check_measure(env.get("QUANTRY_MEASURE") or "cached"),
    )


@contextlib.contextmanager
def use(
    *kernels: str,
    numerics: NumericsMode | None = None,
    reference: Literal["allow", "deny"] | None = None,
    memory: Literal["tight", "fast"] | None = None,
    measure: MeasureMode | None = None,
) -> Iterator[Policy]:
    """Restrict the candidates within the block; what is not named stays as it was.

    kernels: names; each restricts only problems of that kernel's op and is still filtered, so a pinned kernel
    that cannot run says why. Raises UsageError for a name that no plugin provides.
    """
    from quantry.plugins import registry

    names = tuple(name.partition(":")[2] or name for name in kernels)
    known = [k.name for k in registry().kernels]
    for name in names:
        if name not in known:
            raise UsageError(f"no installed plugin has a kernel {name!r}", hint=nearest(name, known))
    policy = current_policy()
    if names:
        policy = replace(policy, only=names)
    if numerics is not None:
        policy = replace(policy, numerics=check_numerics(numerics))
    if reference is not None:
        policy = replace(policy, reference=reference == "allow")
    if memory is not None:
        policy = replace(policy, memory=memory)
    if measure is not None:
        policy = replace(policy, measure=check_measure(measure))
    with applied(policy):
        yield policy


@contextlib.contextmanager
def applied(policy: Policy) -> Iterator[None]:
    """Make `policy` the current one within the block."""
    token = _override.set(policy)
    try:
        yield
    finally:
        _override.reset(token)

"""Every error a user can meet, each with its exit code.

```
QuantryError                       exit 1
├── UsageError                     exit 2   wrong option, unknown name (nearest match proposed)
├── FormatError                    exit 3   the file lies
│   ├── TruncatedFile                       the data ends before what the header declares
│   ├── HeaderError                         a header field is impossible or unknown
│   ├── OffsetError                         tensor bytes overlap, or lie outside the file
│   └── DuplicateTensor                     one name twice
├── ShapeError                     exit 3   a layout cannot represent this shape
├── ValueDomainError               exit 3   NaN, Inf or another value a format cannot hold
├── NoKernelError                  exit 4   nothing can run it; carries every candidate and its reason
├── KernelError                    exit 5   a kernel failed while running; never retried on another
└── PluginError                    exit 6   broken, incompatible or missing plugin
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, ClassVar

__all__ = [
    "DuplicateTensor",
    "FormatError",
    "HeaderError",
    "KernelError",
    "NoKernelError",
    "OffsetError",
    "PluginError",
    "QuantryError",
    "ShapeError",
    "TruncatedFile",
    "UsageError",
    "ValueDomainError",
    "nearest",
]


class QuantryError(Exception):
    """What is wrong, where (file, tensor, byte offset) and, as `hint`, what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.offset = offset
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        where = [] if self.file is None else [self.file]
        if self.tensor is not None:
            where.append(f"tensor {self.tensor!r}")
        if self.offset is not None:
            where.append(f"byte {self.offset}")
        sentence = ": ".join([*where, self.problem])
        return sentence if self.hint is None else f"{sentence}\n{self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(self.__dict__))


class UsageError(QuantryError):
    """A wrong argument, option or name."""

    exit_code = 2


class FormatError(QuantryError):
    """A file does not hold what its format or its own header promises."""

    exit_code = 3


class TruncatedFile(FormatError):
    """The bytes end before what the header declares."""


class HeaderError(FormatError):
    """A header field is impossible, unknown or contradicts another."""


class OffsetError(FormatError):
    """Tensor bytes overlap or lie outside the file."""


class DuplicateTensor(FormatError):
    """One tensor name occurs twice."""


class ShapeError(QuantryError):
    """A layout, kernel or encoder cannot represent this shape."""

    exit_code = 3


class ValueDomainError(QuantryError):
    """A value (NaN, Inf, out of range) that the target cannot hold."""

    exit_code = 3


class NoKernelError(QuantryError):
    """No installed kernel can run a problem; `candidates` says why each one declined."""

    exit_code = 4

    def __init__(
        self,
        problem: str,
        *,
        candidates: Sequence[tuple[str, str]] = (),
        tensor: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.candidates = tuple(candidates)
        super().__init__(problem, tensor=tensor, hint=hint)

    def __str__(self) -> str:
        where = "" if self.tensor is None else f"tensor {self.tensor!r}: "
        width = max((len(name) for name, _ in self.candidates), default=0)
        rows = [f"  {name:<{width}}  {reason}" for name, reason in self.candidates]
        tail = [] if self.hint is None else [self.hint]
        return "\n".join([where + self.problem + (":" if rows else ""), *rows, *tail])


class KernelError(QuantryError):
    """A kernel failed while running."""

    exit_code = 5


class PluginError(QuantryError):
    """A plugin is broken, incompatible or missing."""

    exit_code = 6


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, else the sorted list of known names.

    >>> nearest("q4_l", ["q4_k", "q8_0"])
    "Did you mean 'q4_k'?"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None are installed."


def _rebuild(cls: type[QuantryError], state: dict[str, Any]) -> QuantryError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (str(error),)
    return error

"""What the suites share: cases as pytest parameters, and a way to run a suite without pytest."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import unittest
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Outcome",
    "Suite",
    "assert_no_torch_after",
    "assert_pure_import",
    "assert_sentence",
    "failed_facts",
    "outcomes",
    "suite_of",
]


class Suite:
    """Facts are methods `test_*`; one with a parameter `case` runs on each of `cases()`.

    Failures are AssertionErrors that name the case, skips are `unittest.SkipTest` with the reason: pytest
    understands both, and `outcomes` needs no pytest.
    """

    def cases(self) -> Sequence[Any]:
        """What the facts are tried on, known without running any."""
        return ()

    def case_id(self, case: Any) -> str:
        """A short name of a case."""
        return str(case)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One pytest test per fact and case."""
        if "case" in metafunc.fixturenames:
            cases = list(self.cases())
            metafunc.parametrize("case", cases, ids=[self.case_id(case) for case in cases])


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fact on one case."""

    fact: str
    case: str
    result: Literal["passed", "failed", "skipped"]
    message: str = ""


def outcomes(suite: Any, only: str | None = None) -> Iterator[Outcome]:
    """Run every fact of a suite, or the fact `only`, as pytest would. Errors of any kind are failures."""
    cases = suite.cases() if hasattr(suite, "cases") else suite.layout_cases
    for name, fact in inspect.getmembers(suite, inspect.ismethod):
        spoken = name.removeprefix("test_").replace("_", " ")
        if name.startswith("test_") and only in (None, spoken):
            takes_case = "case" in inspect.signature(fact).parameters
            for case in cases if takes_case else [None]:
                shown = "" if case is None else _shown(suite, case)
                yield _outcome(fact, spoken, case, shown)


def suite_of(base: type, **attributes: Any) -> Any:
    """A suite as a subclass with these class attributes makes it."""
    return type(base.__name__, (base,), attributes)()


def failed_facts(suite: Any, only: str | None = None) -> set[str]:
    """Facts of a suite that fail on some case."""
    return {outcome.fact for outcome in outcomes(suite, only) if outcome.result == "failed"}


def _shown(suite: Any, case: Any) -> str:
    if isinstance(case, tuple):
        return " ".join(str(part) for part in case)
    return suite.case_id(case) if isinstance(suite, Suite) else str(case)


def _outcome(fact: Any, name: str, case: Any, shown: str) -> Outcome:
    try:
        if case is None:
            fact()
        else:
            fact(case)
    except unittest.SkipTest as e:
        return Outcome(name, shown, "skipped", str(e))
    except AssertionError as e:
        return Outcome(name, shown, "failed", str(e))
    except Exception as e:
        return Outcome(name, shown, "failed", f"{type(e).__name__}: {e}")
    return Outcome(name, shown, "passed")


def assert_sentence(reason: object, where: object) -> None:
    """A refusal is one line of words that a user can read."""
    assert isinstance(reason, str), f"{where}: refused with {reason!r}, which is not text"
    fine = " " in reason.strip() and "\n" not in reason and reason == reason.strip()
    assert fine, f"{where}: {reason!r} is not a sentence"


def assert_pure_import(module: str) -> None:
    """Importing `module` in a fresh process brings in no torch. Skips what only this process can import."""
    assert_no_torch_after(f"import {module}")


def assert_no_torch_after(statement: str) -> None:
    """A Python statement in a fresh process leaves torch unimported."""
    code = f"{statement}\nimport sys; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    args = [sys.executable, "-c", code]
    done = subprocess.run(args, capture_output=True, text=True, check=False, env=env)
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        raise unittest.SkipTest(f"`{statement}` works in this process only")
    assert done.returncode == 0, f"`{statement}` fails: {done.stderr.strip().splitlines()[-1]}"
    assert done.stdout.split()[-1:] == ["False"], f"`{statement}` imports torch: import it inside functions"

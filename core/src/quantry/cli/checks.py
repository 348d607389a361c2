"""The conformance kit's outcomes, counted by subject, for `quantry plugins check`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from quantry.cli.progress import progress
from quantry.testing.plugin import check_plugin, find

__all__ = ["run_checks"]


def run_checks(name: str) -> dict[str, Any]:
    """name, ok, problems (a sentence each), subjects (facts passed, skipped and failed of each object)."""
    record = find(name)
    counts: dict[str, Counter[str]] = {}
    problems: list[str] = []
    with progress("check") as tick:
        for done, (subject, outcome) in enumerate(check_plugin(name)):
            tick(done, 0, f"{subject}: {outcome.fact}")
            counts.setdefault(subject, Counter())[outcome.result] += 1
            if outcome.result == "failed":
                where = f" [{outcome.case}]" if outcome.case else ""
                problems.append(f"{subject}: {outcome.fact}{where}: {outcome.message}")
    subjects = [
        {"subject": subject, **{result: count[result] for result in ("passed", "skipped", "failed")}}
        for subject, count in counts.items()
    ]
    return {"name": name, "dist": record.dist, "ok": not problems, "problems": problems, "subjects": subjects}

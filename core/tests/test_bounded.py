"""Work within a bound of memory: what runs together never costs more, and the first failure ends it."""

from __future__ import annotations

import threading

import pytest
import torch

import quantry


def run(costs, budget, jobs):
    lock, now, seen, done = threading.Lock(), [0, 0], [0, 0], []
    gate = threading.Barrier(1)

    def work(cost):
        with lock:
            now[0], now[1] = now[0] + cost, now[1] + 1
            seen[0], seen[1] = max(seen[0], now[0]), max(seen[1], now[1])
        gate.wait()
        with lock:
            now[0], now[1] = now[0] - cost, now[1] - 1
            done.append(cost)

    quantry.run_bounded(costs, work, lambda cost: cost, budget=budget, jobs=jobs)
    return seen, done


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_all_is_done_within_the_budget(jobs):
    costs = [1, 5, 3, 9, 2, 2, 7, 1] * 20
    (most, together), done = run(costs, 10, jobs)
    assert sorted(done) == sorted(costs)
    assert most <= 10
    assert together <= jobs


def test_a_task_dearer_than_the_budget_runs_alone():
    (most, together), done = run([50, 50, 50], 10, 4)
    assert (most, together, len(done)) == (50, 1, 3)


def test_the_first_failure_is_raised_and_threads_are_as_before():
    before, begun = torch.get_num_threads(), []

    def work(number):
        begun.append(number)
        if number == 3:
            raise quantry.UsageError("no")

    with pytest.raises(quantry.UsageError, match="no"):
        quantry.run_bounded(range(1000), work, lambda _: 1, budget=2, jobs=2)
    assert len(begun) < 1000
    assert torch.get_num_threads() == before

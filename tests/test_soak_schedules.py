"""Two short schedules of random faults; `nox -s soak` runs more of them, and longer ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.plan import COVERING, Plan

ROOT = Path(__file__).resolve().parent.parent


def soak(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_pool_outlives_random_faults() -> None:
    told = soak("--seeds", "2", "--seconds", "3", "--via", "direct")
    assert told.count("holds") == 2


@pytest.mark.debian
@pytest.mark.parametrize("via", ["tls", "pgbouncer"])
def test_and_through_what_needs_a_program_of_its_own(via: str) -> None:
    assert f"{via}, pool_max" in soak("--seed", "3", "--seconds", "1.5", "--via", via)


def test_a_seed_always_means_the_same() -> None:
    first, second = Plan.of(7), Plan.of(7)
    assert first == second
    assert [next(faults) for faults in [first.faults()] * 5] == [next(faults) for faults in [second.faults()] * 5]
    assert {Plan.of(seed).pool_max for seed in range(20)} == {1, 2, 5}
    assert not any(Plan.of(seed, "pgbouncer").silent for seed in range(20))


def test_the_usual_seeds_cover_everything() -> None:
    plans = [Plan.of(seed) for seed in COVERING]
    assert {plan.via for plan in plans} == {"direct", "tls", "pgbouncer"}
    assert {plan.pool_max for plan in plans} == {1, 2, 5}
    assert {plan.session_reset for plan in plans if plan.via == "direct"} == {"always", "never"}
    assert {(plan.uvloop, plan.eager and not plan.uvloop) for plan in plans} == {
        (False, False), (False, True), (True, False)
    }  # fmt: skip
    assert {plan.silent for plan in plans} == {True, False}
    assert {plan.borrowers for plan in plans} >= {3, 40}

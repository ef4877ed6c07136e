"""The tool that measures the tests: which changes it makes, and that it tells a noticed one from an unnoticed one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from tests.mutation.__main__ import HERE, Result, explained, falls_short, mutants_of, targets
from tests.mutation.mutants import compiled, mutants

SOURCE = '''
"""A docstring."""

LIMIT = 3


def settle(seconds: float, found: bool) -> float | None:
    """Another one."""
    if found and seconds < LIMIT:
        raise ValueError("It takes too long.")
    return seconds + 1
'''


def test_what_is_changed():
    assert [f"{one.line} {one.where}: {one.change}" for one in mutants("place", SOURCE)] == [
        "4 module: 3 -> 4",
        "9 settle: found and seconds < LIMIT -> found or seconds < LIMIT",
        "9 settle: seconds < LIMIT -> seconds <= LIMIT",
        "10 settle: raise ValueError('It takes too long.') -> nothing",
        "11 settle: return seconds + 1 -> return None",
        "11 settle: seconds + 1 -> seconds - 1",
        "11 settle: 1 -> 2",
    ]


def test_each_mutant_is_the_source_with_its_change():
    results = []
    for mutant in mutants("place", SOURCE)[3:]:
        space = {}
        exec(compiled(mutant, SOURCE, "place.py"), space)
        results.append(space["settle"](3.5, True))
    assert results == [4.5, None, 2.5, 5.5]


@pytest.mark.slow
def test_a_change_that_a_test_notices():
    change = "self._enter(_HALF_OPEN) -> nothing"
    program = "-m tests.mutation --module breaker --tests tests/test_breaker.py --only".split()
    ended = subprocess.run(
        [sys.executable, *program, change], cwd=HERE.parents[1], capture_output=True, text=True, timeout=50, check=False
    )
    assert "breaker: 100.0 % noticed: 1 by a failure" in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize(
    ("noticed", "survived", "explained", "whole", "short"),
    [
        (90, 10, 5, 105, False),
        (89, 11, 5, 105, True),
        (89, 11, 0, 1000, False),  # of a sample, which may be that bad by chance
        (79, 21, 0, 1000, True),
        (2, 2, 0, 1000, False),
        (0, 4, 0, 1000, True),
        (0, 0, 3, 3, False),
        (0, 0, 0, 0, False),
    ],
)
def test_when_too_little_is_noticed(noticed, survived, explained, whole, short):
    count = Counter(failed=noticed, survived=survived, explained=explained)
    assert falls_short(Result("it", count, whole)) is short


def test_every_survivor_that_is_explained_still_exists():
    there = {(one.module, one.where, one.change) for target in targets() for one in mutants_of(target)}
    assert explained() <= there
    entries = tomllib.loads((HERE / "survivors.toml").read_text(encoding="utf-8"))["survivor"]
    assert all(entry["reason"].strip() for entry in entries)


def test_the_tests_of_each_part_exist():
    assert all((HERE.parents[1] / name.partition("::")[0]).exists() for target in targets() for name in target.tests)

"""What is counted, and the figures that come of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdb_guard.fleet.results import BIN, Result, Series

MOMENTS = st.floats(0.0, 10.0)


def counted(outage: float, failed: list[float], requests: list[float]) -> Result:
    result = Result(environments=10, capacity=100.0, outage=outage, starting_core_seconds=0.0)
    result.count([1.0] * len(failed), failed, requests)
    return result


@given(st.lists(st.tuples(MOMENTS, MOMENTS), max_size=20))
def test_a_span_adds_its_length_times_its_rate_wherever_it_lies(spans: list[tuple[float, float]]) -> None:
    series = Series(10.0)
    for begin, end in spans:
        series.add_span(begin, end, 3.0)
    values = series.values()
    for index, value in enumerate(values):
        left, right = index * BIN, (index + 1) * BIN
        expected = sum(max(0.0, min(end, right) - max(begin, left)) for begin, end in spans)
        assert value == pytest.approx(3.0 * expected, abs=1e-6)


def test_a_moment_beyond_the_end_is_not_counted() -> None:
    series = Series(1.0)
    series.add(0.05)
    series.add(7.0)
    assert sum(series.values()) == 1


def test_the_fleet_is_served_again_after_the_last_half_second_with_too_many_failures() -> None:
    failed = [0.0] * 100
    failed[10] = failed[30] = 1.0
    requests = [10.0] * 100
    assert counted(1.0, failed, requests).served_after(0.99) == pytest.approx(2.1)
    assert counted(1.0, failed, requests).served_after(0.90) == 0.0
    failed[99] = 10.0
    assert counted(1.0, failed, requests).served_after(0.99) == math.inf


def test_failures_are_told_apart_by_when_they_came() -> None:
    result = counted(1.0, [2.0] * 10 + [1.0] * 10, [5.0] * 20)
    assert (result.failed_during, result.failed_after) == (20.0, 10.0)
    assert result.attempts_per_environment == 1.0
    assert result.peak == pytest.approx(1.0 / BIN / 100.0)


def test_two_runs_are_two_runs() -> None:
    result = counted(1.0, [2.0] * 20, [5.0] * 20)
    result.count([3.0] * 20, [4.0] * 20, [5.0] * 20)
    assert (result.failed_during, result.attempts_per_environment) == (30.0, 2.0)
    assert result.peak == pytest.approx(2.0 / BIN / 100.0)

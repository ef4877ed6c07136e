"""Elapsed time is the larger of the monotonic and the wall clock's, and never below zero."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdb_guard.clock import LONG_AGO, NEVER, after, elapsed, has_come, now

SECONDS = st.floats(-1e9, 1e9)
INSTANTS = st.tuples(SECONDS, SECONDS)


@pytest.mark.parametrize(
    ("until", "seconds"),
    [
        pytest.param((110.0, 1010.0), 10.0, id="both-clocks-run"),
        pytest.param((100.0, 1300.0), 300.0, id="frozen-monotonic-stands-still"),
        pytest.param((110.0, 400.0), 10.0, id="wall-set-back"),
        pytest.param((110.0, 4600.0), 3600.0, id="wall-set-forward"),
        pytest.param((100.0, 400.0), 0.0, id="frozen-and-wall-set-back"),
        pytest.param((90.0, 990.0), 0.0, id="instants-in-the-wrong-order"),
    ],
)
def test_the_larger_of_both_clocks_counts(until, seconds):
    assert elapsed((100.0, 1000.0), until) == seconds


@given(since=INSTANTS, until=INSTANTS)
def test_elapsed_time_is_never_below_zero_nor_below_either_clock(since, until):
    seconds = elapsed(since, until)
    assert seconds >= 0.0
    assert seconds >= until[0] - since[0]
    assert seconds >= until[1] - since[1]


def test_an_instant_reads_both_clocks():
    earliest = (time.monotonic(), time.time())
    instant = now()
    latest = (time.monotonic(), time.time())
    assert earliest[0] <= instant[0] <= latest[0]
    assert earliest[1] <= instant[1] <= latest[1]


@given(since=INSTANTS, seconds=st.floats(0, 1e6), until=INSTANTS)
def test_an_instant_has_come_once_that_much_time_has_passed(since, seconds, until):
    if abs(elapsed(since, until) - seconds) > 1e-3:
        assert has_come(after(since, seconds), until) == (elapsed(since, until) > seconds)


def test_one_instant_has_always_come_and_another_never_does():
    assert has_come(LONG_AGO, now())
    assert not has_come(NEVER, now())

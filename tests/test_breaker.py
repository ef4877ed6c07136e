"""The circuit breaker, driven with instants: no test here waits, and none reads a clock."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.errors import CircuitOpenError
from asyncdb_guard.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, CircuitRejected
from asyncdb_guard.failures import FailureKind

FAIL_MAX, FIRST, LONGEST, LEASE = 3, 10.0, 60.0, 5.0
START = (1000.0, 1_700_000_000.0)


class Bench:
    """A breaker with hands on its clocks and on its jitter, and a record of its events."""

    def __init__(self, *, jitter: float = 1.0, **options) -> None:
        self.now = START
        self.jitter = jitter
        self.drawn = []
        self.events = []
        options = {
            "fail_max": FAIL_MAX, "reset_timeout": FIRST, "reset_timeout_max": LONGEST, "trial_lease": LEASE,
        } | options  # fmt: skip
        self.breaker = CircuitBreaker(emit=self.events.append, draw=self.draw, **options)

    def draw(self, low, high):
        self.drawn.append((low, high))
        return low + self.jitter * (high - low)

    def passes(self, seconds, *, wall=None):
        """Both clocks go on; the wall clock by `wall` if that is given."""
        self.now = (self.now[0] + seconds, self.now[1] + (seconds if wall is None else wall))

    def admit(self):
        return self.breaker.admit(self.now)

    def fail(self, permit=None, kind=FailureKind.ANSWERED, *, alone=False):
        self.breaker.failed(self.admit() if permit is None else permit, self.now, kind, alone=alone)

    def succeed(self, permit=None):
        self.breaker.succeeded(self.admit() if permit is None else permit)

    def trip(self, kind=FailureKind.ANSWERED):
        for _ in range(FAIL_MAX):
            self.fail(kind=kind)
        assert self.breaker.state == "open"

    def refused(self):
        """The seconds after which a caller is told to come back."""
        with pytest.raises(CircuitOpenError) as caught:
            self.admit()
        return caught.value.retry_after

    def to_trial(self):
        """Trip, wait, and let the trial in."""
        self.trip()
        self.passes(FIRST)
        return self.admit()


@pytest.fixture
def bench():
    return Bench()


def test_a_new_circuit_is_closed(bench):
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 0)


def test_consecutive_failures_open_the_circuit(bench):
    bench.fail()
    bench.fail()
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 2)
    bench.fail()
    assert (bench.breaker.state, bench.breaker.failures) == ("open", 3)


def test_failures_of_callers_who_came_together_count_alike(bench):
    permits = [bench.admit() for _ in range(FAIL_MAX)]
    for permit in permits:
        bench.fail(permit)
    assert bench.breaker.state == "open"


def test_a_success_between_failures_starts_the_count_afresh(bench):
    for report in (bench.fail, bench.fail, bench.succeed, bench.fail, bench.fail):
        report()
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 2)


def test_a_neutral_end_is_neither_success_nor_failure(bench):
    bench.fail()
    bench.fail()
    bench.breaker.released(bench.admit())
    assert bench.breaker.failures == 2
    bench.fail()
    assert bench.breaker.state == "open"


def test_one_failure_is_enough_where_fail_max_is_one():
    bench = Bench(fail_max=1)
    bench.fail()
    assert bench.breaker.state == "open"


def test_an_open_circuit_refuses_and_says_when_to_come_back(bench):
    bench.trip()
    assert bench.refused() == 10.0
    bench.passes(4.0)
    with pytest.raises(CircuitOpenError, match=r"^The circuit is open .*\. Try again in 6\.0 s\.$") as told:
        bench.admit()
    assert told.value.retry_after == 6.0


@pytest.mark.parametrize(("jitter", "period"), [(0.0, 5.0), (0.5, 7.5), (1.0, 10.0)])
def test_the_first_period_is_drawn_from_its_upper_half(jitter, period):
    bench = Bench(jitter=jitter)
    bench.trip()
    assert bench.drawn == [(5.0, 10.0)]
    assert bench.refused() == period
    bench.passes(period - 0.25)
    assert bench.refused() == 0.25
    bench.passes(0.25)
    bench.admit()
    assert bench.breaker.state == "half_open"


def test_without_a_hand_on_it_the_jitter_covers_the_upper_half():
    periods = []
    for _ in range(200):
        breaker = CircuitBreaker(
            fail_max=1, reset_timeout=8.0, reset_timeout_max=8.0, trial_lease=1.0, emit=periods.append
        )
        breaker.failed(breaker.admit(START), START, FailureKind.ANSWERED, alone=True)
    seconds = [event.seconds for event in periods]
    assert 4.0 <= min(seconds) < 4.5  # (7/8) ** 200 is 2.5e-12
    assert 7.5 < max(seconds) <= 8.0


def test_periods_double_to_the_cap_and_start_afresh_after_a_success(bench):
    bench.trip()
    for period in (10.0, 20.0, 40.0, 60.0, 60.0):
        assert bench.refused() == period
        assert bench.drawn[-1] == (period / 2, period)
        bench.passes(period)
        bench.fail()
    bench.passes(60.0)
    bench.succeed()
    bench.trip()
    assert bench.refused() == 10.0


def test_a_cap_as_long_as_the_first_period_keeps_it():
    bench = Bench(reset_timeout_max=FIRST)
    bench.trip()
    bench.passes(FIRST)
    bench.fail()
    assert bench.refused() == FIRST


def test_a_period_of_nothing_lets_the_trial_in_at_once():
    bench = Bench(reset_timeout=0.0, reset_timeout_max=0.0)
    bench.trip()
    bench.admit()
    assert bench.breaker.state == "half_open"


@pytest.mark.parametrize("kind", [FailureKind.SILENT, FailureKind.FULL])
def test_after_silence_and_for_a_full_server_every_period_is_twice_as_long(bench, kind):
    bench.trip(kind)
    for period in (20.0, 40.0, 80.0, 120.0, 120.0):
        assert bench.refused() == period
        assert bench.drawn[-1] == (period / 2, period)
        bench.passes(period)
        bench.fail(kind=kind)


def test_a_period_is_long_for_the_failure_that_began_it_only(bench):
    bench.trip()
    bench.passes(10.0)
    bench.fail(kind=FailureKind.SILENT)
    assert bench.refused() == 40.0
    bench.passes(40.0)
    bench.fail()
    assert bench.refused() == 40.0


@pytest.mark.parametrize("before", [FailureKind.ANSWERED, FailureKind.SILENT, FailureKind.FULL])
def test_the_first_trial_that_meets_a_starting_server_starts_the_periods_afresh(bench, before):
    bench.trip(before)
    for _ in range(3):
        bench.passes(200.0)
        bench.fail(kind=before)
    periods = []
    for _ in range(4):
        bench.passes(200.0)
        bench.fail(kind=FailureKind.STARTING)
        periods.append(bench.refused())
    assert periods == [10.0, 20.0, 40.0, 60.0]


def test_a_server_that_was_starting_all_the_time_is_no_news(bench):
    bench.trip(FailureKind.STARTING)
    bench.passes(10.0)
    bench.fail(kind=FailureKind.STARTING)
    assert bench.refused() == 20.0


def test_a_connect_that_meets_silence_opens_the_circuit_at_once_where_the_pool_has_no_session_besides(bench):
    bench.fail(kind=FailureKind.SILENT, alone=True)
    assert (bench.breaker.state, bench.breaker.failures) == ("open", 1)
    assert bench.refused() == 20.0


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind is not FailureKind.SILENT])
def test_a_connect_that_got_an_answer_counts_as_one_failure(bench, kind):
    bench.fail(kind=kind, alone=True)
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 1)


def test_silence_counts_as_one_failure_where_the_pool_has_a_session(bench):
    bench.fail(kind=FailureKind.SILENT)
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 1)


def test_periods_stop_growing_however_many_trials_fail(bench):
    bench.trip()
    for _ in range(5000):  # a float doubled 1,024 times is no float any more
        bench.passes(200.0)
        bench.fail()
    assert bench.refused() == LONGEST


def test_one_trial_of_fifty(bench):
    bench.trip()
    bench.passes(FIRST)
    admitted, told = [], []
    for _ in range(50):
        try:
            admitted.append(bench.admit())
        except CircuitOpenError as error:
            told.append(error.retry_after)
    assert len(admitted) == 1
    assert told == [LEASE] * 49
    bench.succeed(admitted[0])
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 0)
    for _ in range(50):
        bench.admit()


def test_a_trial_that_fails_opens_the_circuit_at_once(bench):
    bench.fail(bench.to_trial())
    assert (bench.breaker.state, bench.breaker.failures) == ("open", FAIL_MAX + 1)


def test_a_stuck_trial_loses_its_place_when_the_lease_ends(bench):
    bench.to_trial()
    bench.passes(LEASE - 0.5)
    assert bench.refused() == 0.5
    bench.passes(0.5)
    bench.admit()
    assert bench.refused() == LEASE


@pytest.mark.parametrize("report", ["succeed", "fail", "release"])
def test_the_late_result_of_an_expired_trial_changes_nothing(bench, report):
    late = bench.to_trial()
    bench.passes(LEASE)
    bench.admit()
    before = (bench.breaker.state, bench.breaker.failures, bench.breaker.generation, list(bench.events))
    {"succeed": bench.succeed, "fail": bench.fail, "release": bench.breaker.released}[report](late)
    assert (bench.breaker.state, bench.breaker.failures, bench.breaker.generation, bench.events) == before
    assert bench.refused() == LEASE


def test_an_overdue_trial_still_counts_while_nobody_has_its_place(bench):
    overdue = bench.to_trial()
    bench.passes(LEASE * 10)
    bench.succeed(overdue)
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize("report", ["succeed", "fail", "release"])
@pytest.mark.parametrize("stage", ["open", "half_open", "closed"])
def test_a_result_from_before_the_trip_changes_nothing(bench, stage, report):
    early = bench.admit()
    if stage == "open":
        bench.trip()
    else:
        trial = bench.to_trial()
        if stage == "closed":
            bench.succeed(trial)
            bench.fail()
    before = (bench.breaker.state, bench.breaker.failures, bench.breaker.generation, list(bench.events))
    {"succeed": bench.succeed, "fail": bench.fail, "release": bench.breaker.released}[report](early)
    assert (bench.breaker.state, bench.breaker.failures, bench.breaker.generation, bench.events) == before
    assert bench.breaker.state == stage
    if stage == "half_open":
        assert bench.refused() == LEASE


def test_a_trial_has_its_say_once(bench):
    trial = bench.to_trial()
    bench.succeed(trial)
    bench.fail(trial)
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 0)


def test_a_trial_that_learned_nothing_frees_its_place_at_once(bench):
    bench.breaker.released(bench.to_trial())
    assert bench.breaker.state == "half_open"
    bench.admit()
    assert bench.refused() == LEASE


def test_what_a_trial_learns_after_it_gave_up_its_place_to_another_changes_nothing(bench):
    first = bench.to_trial()
    bench.breaker.released(first)
    second = bench.admit()
    bench.breaker.released(first)
    bench.fail(first)
    assert bench.breaker.state == "half_open"
    assert bench.refused() == LEASE
    bench.succeed(second)
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize(
    ("monotonic", "wall", "waited"),
    [
        pytest.param(4.0, 4.0, 4.0, id="both-run"),
        pytest.param(0.0, 7.0, 7.0, id="frozen"),
        pytest.param(3.0, -3600.0, 3.0, id="wall-set-back"),
        pytest.param(3.0, 8.0, 8.0, id="wall-set-forward"),
        pytest.param(0.0, -3600.0, 0.0, id="never-below-zero"),
    ],
)
def test_the_larger_of_both_clocks_decides_how_long_the_circuit_was_open(bench, monotonic, wall, waited):
    bench.trip()
    bench.passes(monotonic, wall=wall)
    assert bench.refused() == FIRST - waited


@pytest.mark.parametrize(("monotonic", "wall"), [(FIRST, -1e6), (0.0, FIRST)], ids=["wall-set-back", "frozen"])
def test_either_clock_alone_ends_the_open_period(bench, monotonic, wall):
    bench.trip()
    bench.passes(monotonic, wall=wall)
    bench.admit()
    assert bench.breaker.state == "half_open"


@pytest.mark.parametrize(("monotonic", "wall"), [(LEASE, -1e6), (0.0, LEASE)], ids=["wall-set-back", "frozen"])
def test_either_clock_alone_ends_the_lease_of_a_trial(bench, monotonic, wall):
    bench.to_trial()
    bench.passes(monotonic, wall=wall)
    bench.admit()


def test_a_wall_clock_that_jumps_back_and_forth_costs_nobody_more_than_the_period(bench):
    bench.trip()
    for jump in (-86_400.0, +86_395.0, -7200.0, +7201.0):
        bench.passes(1.0, wall=jump)
        assert 0.0 < bench.refused() <= FIRST
    bench.passes(FIRST - 4.0, wall=-86_400.0)
    bench.admit()


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1e6, 1e6)), max_size=20))
def test_retry_after_is_always_within_the_period_or_the_lease(moves):
    bench = Bench()
    bench.trip()
    for monotonic, wall in moves:
        bench.passes(monotonic, wall=wall)
        bound = LEASE if bench.breaker.state == "half_open" else FIRST
        with contextlib.suppress(CircuitOpenError):
            bench.admit()
            continue
        assert 0.0 < bench.refused() <= bound


def test_the_events_tell_the_story_in_order(bench):
    bench.trip()
    bench.refused()
    bench.passes(FIRST)
    trial = bench.admit()
    bench.refused()
    bench.fail(trial)
    bench.passes(20.0)
    bench.succeed()
    assert bench.events == [
        CircuitOpened(10.0),
        CircuitRejected(),
        CircuitHalfOpened(),
        CircuitRejected(),
        CircuitOpened(20.0),
        CircuitHalfOpened(),
        CircuitClosed(),
    ]


def test_a_second_trial_of_one_half_open_circuit_is_no_news(bench):
    bench.breaker.released(bench.to_trial())
    bench.admit()
    bench.passes(LEASE)
    bench.admit()
    assert bench.events == [CircuitOpened(10.0), CircuitHalfOpened()]


def test_a_listener_sees_the_breaker_as_it_is_after_the_change():
    seen = []
    breaker = CircuitBreaker(
        fail_max=1, reset_timeout=FIRST, reset_timeout_max=LONGEST, trial_lease=LEASE,
        emit=lambda event: seen.append((event.name, breaker.state)),
    )  # fmt: skip
    breaker.failed(breaker.admit(START), START, FailureKind.ANSWERED, alone=True)
    breaker.succeeded(breaker.admit((START[0] + FIRST, START[1])))
    assert seen == [("circuit_opened", "open"), ("circuit_half_opened", "half_open"), ("circuit_closed", "closed")]


def test_the_openings_are_counted_from_none():
    bench = Bench()
    assert bench.breaker.openings == 0
    bench.trip()
    assert bench.breaker.openings == 1


def test_an_opening_tells_for_how_long_however_many_trials_have_failed(bench):
    bench.trip()
    for _ in range(6):
        opened = bench.events[-1]
        assert opened == CircuitOpened(bench.refused())
        bench.passes(200.0)
        bench.fail()

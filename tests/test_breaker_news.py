"""What news of the fleet change for a circuit breaker, and that false ones cost little. Nothing here waits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.errors import CircuitOpenError
from asyncdb_guard.events import Event
from asyncdb_guard.failures import FailureKind
from asyncdb_guard.news import LAST_LIFE, RECOVERY_LIFE, News, believed

FIRST, LONGEST = 2.0, 5.0


class Environment:
    """A breaker with a clock of its own. Jitter takes the upper end, unless told otherwise."""

    def __init__(self, first: float = FIRST) -> None:
        self.seconds = 1000.0
        self.jitter = 1.0
        self.heard: list[Event] = []
        self.breaker = CircuitBreaker(
            fail_max=3, reset_timeout=first, reset_timeout_max=LONGEST, trial_lease=5.0, emit=self.heard.append,
            draw=lambda low, high: low + self.jitter * (high - low),
        )  # fmt: skip

    @property
    def now(self) -> tuple[float, float]:
        return self.seconds, self.seconds

    def fail(self, kind: FailureKind = FailureKind.ANSWERED, took: float = 0.0, *, alone: bool = False) -> None:
        is_trial = self.breaker.state == "half_open"
        permit, began = self.breaker.generation if is_trial else self.breaker.admit(self.now), self.now
        self.seconds += took
        self.breaker.failed(permit, self.now, kind, alone=alone, began=began)

    def trip(self) -> None:
        for _ in range(3):
            self.fail()

    def follow_news(self) -> None:
        """Open the circuit, and be admitted half a second later, as a recovery has gone on for long."""
        self.trip()
        self.seconds += 0.5
        assert self.missing(last=0.1, recovery="a", since=FIRST) == 0.0

    def hear(self, **news: object) -> None:
        self.breaker.hear(News(self.now, **news), self.now)  # type: ignore[arg-type]

    def missing(self, **news: object) -> float:
        """The seconds for which it refuses after these news; 0 if it admits, as the trial."""
        if news:
            self.hear(**news)
        try:
            self.breaker.admit(self.now)
        except CircuitOpenError as error:
            return error.retry_after or 0.0
        return 0.0


@pytest.fixture
def environment() -> Environment:
    return Environment()


def test_a_trial_that_succeeded_elsewhere_brings_the_turn_forward(environment: Environment) -> None:
    environment.trip()
    environment.seconds += 0.5
    environment.jitter = 0.25
    assert environment.missing(last=0.1, recovery="a", since=0.2) == pytest.approx(0.25 * FIRST - 0.2)
    environment.seconds += 0.31
    assert environment.missing(last=0.1, recovery="a", since=0.5) == 0.0


def test_the_turn_is_drawn_once_for_each_recovery(environment: Environment) -> None:
    environment.trip()
    environment.seconds += 0.5
    environment.jitter = 0.5
    assert environment.missing(last=0.1, recovery="a") == pytest.approx(1.0)
    environment.jitter = 0.0
    assert environment.missing(last=0.1, recovery="a") == pytest.approx(1.0)
    environment.jitter = 0.75
    assert environment.missing(last=0.1, recovery="b") == pytest.approx(1.5)


def test_a_few_are_not_spread_as_far_as_a_fleet() -> None:
    for others, turn in ((0, FIRST), (1, FIRST / 8), (4, FIRST / 2), (8, FIRST), (9, FIRST)):
        environment = Environment()
        environment.trip()
        environment.seconds += 0.1
        environment.hear(open=others)
        assert environment.missing(last=0.0, recovery="a") == pytest.approx(turn)


def test_a_recovery_that_has_gone_on_for_long_lets_everybody_in_at_once(environment: Environment) -> None:
    environment.follow_news()


def test_a_success_before_the_own_attempt_is_no_news(environment: Environment) -> None:
    environment.trip()
    environment.seconds += 0.5
    assert environment.missing(last=0.6, recovery="a", since=10.0) == pytest.approx(FIRST - 0.5)


def test_an_attempt_counts_from_when_it_began(environment: Environment) -> None:
    for _ in range(2):
        environment.fail()
    environment.fail(took=2.0)
    environment.seconds += 0.1
    assert environment.missing(last=1.9, recovery="a", since=FIRST) == 0.0


def test_a_trial_counts_from_when_it_was_admitted(environment: Environment) -> None:
    environment.trip()
    environment.seconds += 2.0
    permit = environment.breaker.admit(environment.now)
    environment.seconds += 1.0
    environment.breaker.failed(permit, environment.now, FailureKind.ANSWERED, alone=False, began=(0.0, 0.0))
    environment.seconds += 0.1
    assert environment.missing(last=1.2, recovery="a", since=FIRST) > 1.0
    assert environment.missing(last=0.9, recovery="a", since=FIRST) == 0.0


def grown(environment: Environment, trials: int, **news: object) -> float:
    """The open period after so many failed trials."""
    environment.trip()
    for _ in range(trials):
        environment.seconds += environment.missing(**news)
        environment.fail()
    return environment.missing(**news)


def test_the_longest_period_is_up_to_four_times_as_long_where_others_try_too() -> None:
    assert [grown(Environment(), trials, open=8) for trials in range(6)] == [2, 4, 8, 16, 20, 20]
    assert [grown(Environment(), 6, open=others) for others in (1, 2, 3, 4, 6)] == [5, 5, 7.5, 10, 15]
    assert [grown(Environment(), trials) for trials in range(4)] == [2, 4, 5, 5]


def test_a_store_that_keeps_nothing_is_no_store() -> None:
    assert [grown(Environment(), trials, open=0) for trials in range(4)] == [2, 4, 5, 5]


def test_once_the_store_falls_silent_the_period_is_the_short_one_at_once(environment: Environment) -> None:
    assert grown(environment, 5, open=8) == 20.0
    environment.breaker.hear(None, environment.now)
    assert environment.missing() == 5.0


def test_the_events_tell_the_period_that_is_in_force(environment: Environment) -> None:
    grown(environment, 5, open=8)
    periods = [vars(event)["seconds"] for event in environment.heard if event.name == "circuit_opened"]
    assert periods == [2, 4, 8, 16, 20, 20]


def test_each_trial_that_followed_the_news_and_failed_makes_the_next_turn_later(environment: Environment) -> None:
    environment.trip()
    holds: list[float] = []
    for _ in range(4):
        environment.seconds += 0.01
        environment.seconds += environment.missing(last=0.0, recovery="a", since=50.0)
        environment.fail()
        environment.seconds += 0.01
        holds.append(round(environment.missing(last=0.0, recovery="a", since=50.0) + 0.01, 6))
    assert holds == [4.0, 5.0, 5.0, 5.0]


def test_silence_doubles_that_too(environment: Environment) -> None:
    environment.trip()
    environment.seconds += 0.01
    assert environment.missing(last=0.0, recovery="a", since=50.0) == 0.0
    environment.breaker.failed(environment.breaker.generation, environment.now, FailureKind.SILENT, alone=True)
    environment.seconds += 0.01
    assert environment.missing(last=0.0, recovery="a", since=50.0) == pytest.approx(2 * 4.0 - 0.01)


def test_a_success_starts_all_of_it_afresh(environment: Environment) -> None:
    grown(environment, 3, last=0.0, recovery="a", since=50.0)
    environment.seconds += 20.0
    environment.breaker.succeeded(environment.breaker.admit(environment.now))
    environment.trip()
    assert environment.missing() == FIRST
    environment.seconds += 0.01
    assert environment.missing(last=0.0, recovery="a", since=FIRST) == 0.0


def test_news_that_are_old_by_now_are_old(environment: Environment) -> None:
    environment.trip()
    environment.seconds += 0.5
    environment.hear(last=0.4, recovery="a", since=FIRST)
    environment.seconds += 0.5
    assert environment.missing() == 0.0  # still from 0.1 s after the attempt
    other = Environment()
    other.hear(last=0.4)
    other.trip()
    assert other.missing() == FIRST


# A pool without a session


def test_a_pool_without_a_session_believes_three_and_opens_after_one_failure(environment: Environment) -> None:
    assert not environment.breaker.wants_news
    environment.fail(alone=True)
    assert environment.breaker.wants_news
    assert environment.missing(open=3) == FIRST
    assert environment.breaker.state == "open"


def test_it_does_not_believe_two_and_a_pool_with_a_session_goes_by_its_own_failures() -> None:
    alone, other = Environment(), Environment()
    for one, told in ((alone, 2), (other, 8)):
        one.fail(alone=one is alone)
        one.hear(open=told)
        assert one.breaker.state == "closed"
    assert not other.breaker.wants_news


def test_a_pool_that_has_met_no_failure_is_healthy_whatever_is_told(environment: Environment) -> None:
    environment.hear(open=8)
    assert environment.breaker.state == "closed"


def test_a_circuit_that_is_half_open_wants_no_news(environment: Environment) -> None:
    environment.trip()
    assert environment.breaker.wants_news
    environment.seconds += 2.0
    assert environment.missing() == 0.0
    assert not environment.breaker.wants_news


# Whatever the store says

INSTANT = st.floats(0, 100)
LIES = st.builds(
    lambda last, recovery, since, witnesses: {"last": last, "recovery": recovery, "since": since, "open": witnesses},
    st.none() | st.floats(0, LAST_LIFE), st.none() | st.sampled_from("abc"), st.floats(0, RECOVERY_LIFE),
    st.integers(0, 9),
)  # fmt: skip


STEPS = st.lists(
    st.tuples(LIES | st.none(), st.floats(0.01, 3.0), st.sampled_from(FailureKind), st.sampled_from([0.0, 0.5, 1.0])),
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_lies_neither_keep_a_circuit_open_for_ever_nor_let_it_try_all_the_time(steps) -> None:
    environment = Environment()
    environment.trip()
    opened, early = environment.seconds, [-1e9]
    for lie, pause, kind, environment.jitter in steps:
        environment.seconds += pause
        environment.breaker.hear(None if lie is None else News(environment.now, **lie), environment.now)
        waited = environment.seconds - opened
        try:
            permit = environment.breaker.admit(environment.now)
        except CircuitOpenError:
            assert waited < 2 * (4 * LONGEST) + LONGEST
            continue
        if waited < FIRST / 2 - 1e-6:  # earlier than any period of its own
            assert environment.seconds - early[-1] >= FIRST - 1e-6
            early.append(environment.seconds)
        environment.breaker.failed(permit, environment.now, kind, alone=False)
        opened = environment.seconds


def test_a_store_that_names_another_recovery_each_time_cannot_keep_a_circuit_open(environment: Environment) -> None:
    environment.trip()
    for number in range(100):
        environment.seconds += 0.1
        if environment.missing(last=0.0, recovery=str(number), since=0.0) == 0.0:
            break
    assert environment.breaker.state == "half_open"
    assert number < (2 * FIRST) / 0.1 + 1


@pytest.mark.parametrize(
    ("last", "recovery", "since", "witnesses"),
    [
        (-0.001, None, None, 0), (LAST_LIFE + 0.001, None, None, 0), (None, "a", -1.0, 0), (None, "a", 61.0, 0),
        (None, None, 1.0, 0), (1.0, "x" * 65, 1.0, 0), (1.0, b"x", 1.0, 0), (1.0, "", 1.0, 0), (None, None, None, -1),
    ],
)  # fmt: skip
def test_what_nobody_can_have_told_is_not_believed(last, recovery, since, witnesses) -> None:
    with pytest.raises(ValueError, match="holds something else"):
        believed((0.0, 0.0), last, recovery, since, witnesses)


def test_what_somebody_told_is_believed_also_in_part() -> None:
    at = (7.0, 7.0)
    assert believed(at, None, None, None, 0) == News(at)
    assert believed(at, 1.0, "a", 2.0, 3) == News(at, 1.0, "a", 2.0, 3)
    assert believed(at, 1.0, None, None, 1) == News(at, 1.0, open=1)  # the store has lost the recovery
    assert believed(at, None, "a", 7.0, 0) == News(at, None, "a", 7.0)  # it is over


def test_one_success_speaks_for_all_for_a_quarter_of_a_second() -> None:
    news = News((0.0, 0.0), last=0.1)
    assert news.speaks_for_recovery((0.1, 0.1))
    assert not news.speaks_for_recovery((0.2, 0.2))
    assert not News((0.0, 0.0)).speaks_for_recovery((0.0, 0.0))
    assert [News((0.0, 0.0), open=known).speaks_for_open() for known in (7, 8)] == [False, True]


def test_the_next_outage_begins_without_the_others_of_the_last_one(environment: Environment) -> None:
    environment.trip()
    environment.hear(open=2)
    environment.seconds += FIRST
    environment.breaker.succeeded(environment.breaker.admit(environment.now))
    environment.trip()
    environment.seconds += 0.1
    assert environment.missing(last=0.0, recovery="a") == pytest.approx(FIRST)


def test_the_next_outage_begins_without_the_delay_that_followed_false_news(environment: Environment) -> None:
    environment.follow_news()
    environment.fail(FailureKind.STARTING)
    environment.breaker.hear(None, environment.now)
    environment.seconds += FIRST
    environment.breaker.succeeded(environment.breaker.admit(environment.now))
    environment.trip()
    environment.seconds += 0.1
    assert environment.missing(last=0.0, recovery="b", since=FIRST) == 0.0


def test_the_delay_after_false_news_is_drawn_from_its_upper_half(environment: Environment) -> None:
    environment.follow_news()
    environment.jitter = 0.0
    environment.fail()
    environment.seconds += 0.5
    assert environment.missing(last=0.1, recovery="b", since=2 * FIRST) == pytest.approx(FIRST - 0.5)


def test_the_edges_of_what_is_believed() -> None:
    at, name = (5.0, 5.0), "a" * 64
    assert believed(at, 0.0, name, 0.0, 0) == News(at, 0.0, name, 0.0, 0)
    assert believed(at, LAST_LIFE, name, RECOVERY_LIFE, 1) == News(at, LAST_LIFE, name, RECOVERY_LIFE, 1)
    assert believed(at, 0.0, name + "a", None, 0).recovery is None


def test_a_success_speaks_for_a_quarter_of_a_second() -> None:
    at = (5.0, 5.0)
    assert News(at, last=0.0).speaks_for_recovery((5.2, 5.2))
    assert not News(at, last=0.0).speaks_for_recovery((5.25, 5.25))
    assert not News(at, last=0.125).speaks_for_recovery((5.125, 5.125))


def test_what_false_news_have_cost_is_forgotten_with_the_outage() -> None:
    environment = Environment(first=0.25)
    environment.follow_news()
    environment.fail()
    environment.seconds += 0.5
    assert environment.missing(last=0.1, recovery="a", since=FIRST) == 0.0
    environment.breaker.succeeded(environment.breaker.generation)
    assert environment.breaker.state == "closed"
    environment.trip()
    environment.seconds += 0.25
    assert environment.missing(last=0.1, recovery="b", since=FIRST) == 0.0


@pytest.mark.parametrize(("began", "since"), [(7.0, True), (8.0, False), (9.0, False)])
def test_only_a_trial_that_succeeded_after_an_attempt_began_says_more_than_that(began: float, since: bool) -> None:
    news = News((10.0, 10.0), last=2.0)
    for now in (10.0, 13.0):  # news grow old
        assert news.succeeded_since((began, began), (now, now)) is since


@pytest.mark.parametrize(("others", "factor"), [(0, 1.0), (2, 1.0), (6, 3.0), (8, 4.0), (1000, 4.0)])
def test_the_longest_period_is_stretched_by_the_number_of_others_but_not_without_end(
    others: int, factor: float
) -> None:
    assert News((0.0, 0.0), open=others).stretch == factor


@pytest.mark.parametrize(("last", "since", "plausible"), [(5.0, 60.0, True), (5.5, 1.0, False), (1.0, 60.5, False)])
def test_what_a_store_may_hold_is_the_same_in_every_version_as_several_may_share_it(
    last: float, since: float, plausible: bool
) -> None:
    if plausible:
        assert believed((0.0, 0.0), last, "a", since, 0) == News((0.0, 0.0), last, "a", since, 0)
    else:
        with pytest.raises(ValueError, match="holds something else"):
            believed((0.0, 0.0), last, "a", since, 0)

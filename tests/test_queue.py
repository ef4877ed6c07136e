"""The gate alone, without a server: who waits, who is refused, who is blamed, and which connects go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    ConnectFailedError,
    ConnectTimeoutError,
    DatabaseSettings,
    PoolClosedError,
    clock,
)
from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.bulletin.board import Bulletin
from asyncdb_guard.connect.initialization import InitFailedError
from asyncdb_guard.events import Event, Events
from asyncdb_guard.failures import FailureKind, Verdict
from asyncdb_guard.news import News
from asyncdb_guard.pool.connect_attempt import ConnectAttempt
from asyncdb_guard.pool.gate import Gate, Waiter

USUAL = 2.0
"""Seconds of CONNECT_TIMEOUT."""
PERIOD = 10.0
"""Seconds for which the circuit is open."""

Later = Callable[[float], None]
REFUSED = ConnectionRefusedError("nobody listens")


class Words:
    """A store that remembers what it is told, and says what it is told to say."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.news: dict[str, Any] = {}

    def look(self, at: clock.Instant) -> News:
        return News(at, **self.news)

    def tell_open(self, witness: str, life: float) -> None:
        self.told.append("open")

    def tell_recovered(self, recovery: str) -> None:
        self.told.append("recovered")

    def close(self) -> None:
        pass


class Bench:
    """One gate with a real breaker, and hands on what its pool does."""

    def __init__(self, later: Later, *, fail_max: int = 3, bulletin: Bulletin | None = None, **traits: bool) -> None:
        self.later = later
        self.heard: list[Event] = []
        events = Events(self.heard.append)
        self.breaker = CircuitBreaker(
            fail_max=fail_max, reset_timeout=PERIOD, reset_timeout_max=60.0, trial_lease=5.0, emit=events.emit,
            draw=lambda low, high: high,
        )  # fmt: skip
        settings = DatabaseSettings(url="postgresql://user@127.0.0.1/db", connect_timeout_ms=int(USUAL * 1000))
        options = {"renews_login": False, "passwordless": False} | traits
        self.gate = Gate(self.breaker, bulletin, settings, events, **options)
        self.connects: list[ConnectAttempt] = []

    def join(self, timeout: float = USUAL) -> Waiter:
        now = clock.now()
        return self.gate.join(self.gate.admit(now), timeout, now)

    def connect(self, *, alone: bool = False) -> ConnectAttempt:
        attempt = self.gate.begin_connect(clock.now(), alone=alone)
        attempt.task = asyncio.create_task(_for_ever())
        self.connects.append(attempt)
        return attempt

    def fail(self, kind: FailureKind = FailureKind.ANSWERED, *, permit: int | None = None) -> None:
        now = clock.now()
        permit = self.breaker.generation if permit is None else permit
        self.gate.report(permit, Verdict.FAILURE, now, kind, began=now)

    def trial(self) -> Waiter:
        """The trial of a half-open circuit, in the queue."""
        while self.breaker.state != "open":
            self.fail()
        self.later(PERIOD)
        return self.join()

    def admits(self) -> bool:
        """Whether another caller may be the trial."""
        with contextlib.suppress(CircuitOpenError):
            self.gate.admit(clock.now())
            return True
        return False

    async def passes(self, seconds: float) -> None:
        """Let time pass, and all timers that are due then."""
        self.later(seconds)
        await turn()

    def timeouts(self) -> list[float]:
        """How long those waited who were told that their time was over, in tenths of a second."""
        waits: list[Any] = [event for event in self.heard if event.name == "acquire_timeout"]
        return [int(event.seconds * 10) / 10 for event in waits]


async def turn() -> None:
    for _ in range(3):  # the loop, the timers that are due, what they have woken
        await asyncio.sleep(0)


async def _for_ever() -> None:
    await asyncio.Event().wait()


def error_of(waiter: Waiter) -> BaseException | None:
    """What a waiter was told; None if it still waits."""
    return waiter.future.exception() if waiter.future.done() else None


def told(*waiters: Waiter) -> list[type | None]:
    errors = [error_of(waiter) for waiter in waiters]
    return [None if error is None else type(error) for error in errors]


@pytest.fixture
async def make_bench(later: Later) -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(later, **options))
        return made[-1]

    yield make
    for bench in made:
        for attempt in bench.connects:
            attempt.task.cancel()


@pytest.fixture
async def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


# -- the queue ---------------------------------------------------------------------------------------------------------


async def test_first_come_first_served(bench: Bench) -> None:
    gate = bench.gate
    first, left, third, fourth = (bench.join() for _ in range(4))
    assert (gate.waiting, gate.first) == (4, first)
    left.future.cancel()  # as that of a task is which was cancelled and has not run since
    assert gate.take_first() is first
    assert gate.first is third
    assert gate.take_first() is third
    assert gate.take_first() is fourth
    assert gate.take_first() is None
    assert (gate.waiting, gate.first) == (0, None)


async def test_each_waiter_ends_by_its_own_timeout(bench: Bench) -> None:
    first = bench.join()
    bench.later(0.5)
    hasty, second, patient = bench.join(0.25), bench.join(), bench.join(9.0)
    everybody = first, hasty, second, patient
    await bench.passes(0.25)
    assert told(*everybody) == [None, AcquireTimeoutError, None, None]
    assert str(error_of(hasty)).startswith("No connection became free within 0.25 s. Return connections sooner")
    await bench.passes(1.2)
    assert told(*everybody) == [None, AcquireTimeoutError, None, None]
    await bench.passes(0.1)
    assert told(*everybody) == [AcquireTimeoutError, AcquireTimeoutError, None, None]
    await bench.passes(0.5)
    assert told(*everybody) == [AcquireTimeoutError] * 3 + [None]
    await bench.passes(7.0)
    assert told(*everybody) == [AcquireTimeoutError] * 4
    assert bench.timeouts() == [0.2, 2.0, 2.0, 9.0]
    assert bench.gate.waiting == 0
    assert bench.breaker.failures == 0
    late = bench.join()
    await bench.passes(USUAL)
    assert told(late) == [AcquireTimeoutError]


@pytest.mark.parametrize("ended", [True, False])
async def test_who_was_served_holds_up_nobodys_timeout_and_gets_none(bench: Bench, ended: bool) -> None:
    served, waiting, hasty = bench.join(), bench.join(), bench.join(1.0)
    assert bench.gate.take_first() is served
    served.future.set_result(None)
    hasty.future.set_result(None)
    if ended:
        bench.gate.end_wait(served)
        bench.gate.end_wait(hasty)
    await bench.passes(USUAL)
    assert told(waiting) == [AcquireTimeoutError]
    assert bench.timeouts() == [2.0]


@pytest.mark.parametrize("timeout", [USUAL, 60.0])
async def test_a_wait_that_is_over_keeps_nothing_alive(bench: Bench, timeout: float) -> None:
    """A borrow that is forgotten must be collected at once, and not when its wait would have ended."""

    class Lease:
        pass

    waiter = bench.join(timeout)
    lease: Any = Lease()
    assert bench.gate.take_first() is waiter
    waiter.future.set_result(lease)
    bench.gate.end_wait(waiter)
    kept = weakref.ref(lease)
    del waiter, lease
    gc.collect()
    assert kept() is None


async def test_whoever_gives_up_leaves_the_queue(bench: Bench) -> None:
    first, second = bench.join(), bench.join()
    assert bench.gate.leave(first) is None
    assert (bench.gate.waiting, bench.gate.first) == (1, second)
    second.future.cancel()
    assert bench.gate.leave(second) is None
    assert bench.gate.waiting == 0
    assert bench.timeouts() == []


async def test_whoever_gives_up_as_a_lease_comes_hands_it_back(bench: Bench) -> None:
    waiter = bench.join()
    lease: Any = object()
    assert bench.gate.take_first() is waiter
    waiter.future.set_result(lease)
    assert bench.gate.leave(waiter) is lease


@pytest.mark.parametrize("end", ["gives up", "is cancelled", "is served", "is late", "is late behind a connect"])
async def test_a_trial_that_ends_in_the_queue_frees_its_place(bench: Bench, end: str) -> None:
    trial = bench.trial()
    assert not bench.admits()
    if end == "is cancelled":
        trial.future.cancel()
    elif end == "is served":
        bench.gate.take_first()
        trial.future.set_result(None)
    if end.startswith("is late"):
        bench.later(1.5)
        if end.endswith("connect"):
            bench.connect()  # too young to tell, when the trial's time is over
        await bench.passes(0.5)
        assert issubclass(told(trial)[0] or object, AcquireTimeoutError)
    else:
        bench.gate.leave(trial)
    assert bench.breaker.state == "half_open"
    assert bench.admits()


async def test_a_refusal_is_reported_once(bench: Bench) -> None:
    """Whoever leaves with one must not free the place of the trial that came after it."""
    refused = bench.trial()
    attempt = bench.connect()
    bench.gate.connect_failed(attempt, REFUSED, promising=False)
    assert told(refused) == [ConnectFailedError]
    bench.later(2 * PERIOD)
    refused.permit = bench.join().permit
    assert bench.gate.leave(refused) is None
    assert not bench.admits()


async def test_after_the_wait_the_breaker_is_asked_again_if_it_has_changed_its_mind(bench: Bench) -> None:
    waiter = bench.join()
    assert bench.gate.readmit(waiter, clock.now()) == waiter.permit
    while bench.breaker.state != "open":
        bench.fail()
    with pytest.raises(CircuitOpenError):
        bench.gate.readmit(waiter, clock.now())
    bench.later(PERIOD)
    permit = bench.gate.readmit(waiter, clock.now())
    assert permit == bench.breaker.generation != waiter.permit
    assert not bench.admits()


async def test_a_block_that_goes_on_says_that_the_database_works(bench: Bench) -> None:
    trial = bench.trial()
    permit = bench.gate.confirm(trial.permit)
    assert bench.breaker.state == "closed"
    assert permit == bench.breaker.generation
    bench.fail(permit=permit)
    assert bench.breaker.failures == 1  # the end of that block counts
    while bench.breaker.state != "open":
        bench.fail()
    assert bench.gate.confirm(permit) == permit
    assert bench.breaker.state == "open"


async def test_a_borrower_who_would_wait_for_itself_is_told_at_once(bench: Bench) -> None:
    permit = bench.trial().permit
    with pytest.raises(AcquireTimeoutError, match=r"^No connection can become free: this task already holds"):
        bench.gate.refuse_nested(permit)
    assert bench.timeouts() == [0.0]
    assert bench.admits()


async def test_a_pool_that_closes_tells_everybody_frees_the_trial_and_ends_what_connects(bench: Bench) -> None:
    trial = bench.trial()
    attempt = bench.connect()
    bench.gate.close()
    assert told(trial) == [PoolClosedError]
    assert bench.gate.waiting == 0
    assert bench.admits()
    await bench.passes(0.5)
    assert attempt.task.cancelled()


async def test_a_closed_gate_is_not_kept_for_a_timeout_that_nobody_waits_for(bench: Bench) -> None:
    assert told(bench.join()) == [None]
    bench.gate.close()
    kept = weakref.ref(bench.gate)
    del bench.gate
    gc.collect()
    assert kept() is None


async def test_the_close_of_a_gate_that_nobody_waited_at(bench: Bench) -> None:
    bench.gate.close()
    assert bench.gate.waiting == 0


# -- connects ----------------------------------------------------------------------------------------------------------


async def test_whoever_waits_for_a_connect_that_hangs_is_told_so(bench: Bench) -> None:
    waiter = bench.join()
    attempt = bench.connect()
    await bench.passes(USUAL)
    assert told(waiter) == [ConnectTimeoutError]
    assert bench.breaker.failures == 1
    bench.gate.end_connect(attempt)
    bench.gate.end_connect(attempt)  # that of a worker that was cut short
    other = bench.join()
    await bench.passes(USUAL)
    assert told(other) == [AcquireTimeoutError]
    assert bench.breaker.failures == 1


async def test_many_who_wait_for_one_connect_report_it_once_in_half_the_timeout(bench: Bench) -> None:
    waiters = [bench.join(USUAL + number / 10) for number in range(5)]
    bench.connect()
    await bench.passes(USUAL + 0.5)
    assert told(*waiters) == [ConnectTimeoutError] * 5
    assert bench.breaker.failures == 1


async def test_who_has_waited_for_less_than_half_the_timeout_cannot_tell(bench: Bench) -> None:
    bench.connect()
    bench.later(5.0)
    waiters = [bench.join(0.9) for _ in range(3)]
    await bench.passes(0.9)
    assert told(*waiters) == [ConnectTimeoutError] * 3
    assert bench.breaker.failures == 0


async def test_the_connect_that_has_lasted_longest_is_the_one_to_blame(bench: Bench) -> None:
    waiter = bench.join()
    bench.connect()
    bench.later(1.5)
    bench.connect()
    await bench.passes(0.5)
    assert told(waiter) == [ConnectTimeoutError]
    assert bench.breaker.failures == 1


async def test_a_lone_connect_that_hangs_opens_the_circuit_and_everybody_is_refused(bench: Bench) -> None:
    waiter, patient = bench.join(), bench.join(60.0)
    attempt = bench.connect(alone=True)
    await bench.passes(USUAL)
    assert told(waiter, patient) == [ConnectTimeoutError, CircuitOpenError]
    refusal: Any = error_of(patient)
    assert refusal.retry_after == 2 * PERIOD
    await turn()
    assert attempt.task.cancelled()


async def test_a_connect_beside_one_that_succeeded_is_not_alone(bench: Bench) -> None:
    waiter = bench.join()
    bench.connect(alone=True)
    bench.gate.connect_succeeded()
    await bench.passes(USUAL)
    assert told(waiter) == [ConnectTimeoutError]
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 1)


async def test_a_failed_connect_fails_whoever_has_waited_longest(bench: Bench) -> None:
    first, second = bench.join(), bench.join()
    bench.gate.connect_failed(bench.connect(), REFUSED, promising=False)
    assert told(first, second) == [ConnectFailedError, None]
    error = error_of(first)
    assert error is not None
    assert error.__cause__ is REFUSED
    assert (bench.gate.waiting, bench.breaker.failures) == (1, 1)


async def test_a_failed_connect_that_was_reported_before_fails_nobody_else(bench: Bench) -> None:
    hasty, patient = bench.join(), bench.join(60.0)
    attempt = bench.connect()
    await bench.passes(USUAL)
    assert told(hasty) == [ConnectTimeoutError]
    bench.gate.connect_failed(attempt, REFUSED, promising=False)
    assert told(patient) == [None]
    assert bench.breaker.failures == 1


async def test_while_others_are_promising_a_failed_connect_is_only_told_of(bench: Bench) -> None:
    gate = bench.gate
    waiter = bench.join()
    attempt = bench.connect()
    gate.connect_failed(attempt, REFUSED, promising=True)
    gate.end_connect(attempt)
    await bench.passes(USUAL)
    text = str(error_of(waiter))
    assert text.startswith("No connection became free within 2.00 s, and the pool could not open another one. The ")
    assert "nothing listens at its host and port" in text
    assert bench.breaker.failures == 0
    gate.connect_succeeded()
    other = bench.join()
    await bench.passes(USUAL)
    assert "could not open another one" not in str(error_of(other))


async def test_a_failed_connect_that_fails_a_waiter_is_no_reason_that_the_pool_cannot_grow(bench: Bench) -> None:
    _, waiter = bench.join(), bench.join()
    attempt = bench.connect()
    bench.gate.connect_failed(attempt, REFUSED, promising=False)
    bench.gate.end_connect(attempt)
    await bench.passes(USUAL)
    assert "could not open another one" not in str(error_of(waiter))


async def test_what_init_raises_reaches_the_waiter_as_it_is_and_only_its_type_is_told_to_others(bench: Bench) -> None:
    own = LookupError("secret")
    first, second = bench.join(), bench.join()
    attempt = bench.connect()
    bench.gate.connect_failed(attempt, InitFailedError(own, lost=False), promising=False)
    assert error_of(first) is own
    assert bench.breaker.failures == 0
    bench.gate.connect_failed(attempt, InitFailedError(own, lost=False), promising=True)
    bench.gate.end_connect(attempt)
    await bench.passes(USUAL)
    assert str(error_of(second)).endswith("could not open another one. init= raised LookupError.")


async def test_a_session_lost_in_init_is_a_failure_but_not_that_of_a_lone_connect(bench: Bench) -> None:
    lost = asyncpg.ConnectionDoesNotExistError("lost")
    lost.__cause__ = TimeoutError()
    waiter = bench.join()
    bench.gate.connect_failed(bench.connect(alone=True), InitFailedError(lost, lost=True), promising=False)
    assert error_of(waiter) is lost
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 1)


async def test_an_error_of_ours_reaches_the_waiter_as_it_is(bench: Bench) -> None:
    waiter, error = bench.join(), ConfigurationError("The secret has no password.")
    bench.gate.connect_failed(bench.connect(), error, promising=False)
    assert error_of(waiter) is error
    assert bench.breaker.failures == 0


@pytest.mark.parametrize(
    ("traits", "failures", "words"),
    [
        ({}, 0, "refused the password; check the user"),
        ({"passwordless": True}, 0, "the settings have none"),
        ({"renews_login": True}, 1, "also with newly fetched credentials"),
    ],
)
async def test_a_refused_login_is_told_and_judged_by_where_the_password_came_from(
    make_bench: Callable[..., Bench], traits: dict[str, bool], failures: int, words: str
) -> None:
    bench = make_bench(**traits)
    waiter = bench.join()
    refusal = asyncpg.PostgresError.new({"S": "FATAL", "V": "FATAL", "C": "28P01", "M": "no"})
    bench.gate.connect_failed(bench.connect(), refusal, promising=False)
    assert words in str(error_of(waiter))
    assert bench.breaker.failures == failures


async def test_a_connect_that_nobody_wants_any_more_may_go_on_for_half_a_second(bench: Bench) -> None:
    waiter, other = bench.join(), bench.join()
    attempt = bench.connect()
    bench.gate.leave(waiter)
    await bench.passes(1.0)
    assert not attempt.task.done()
    bench.gate.leave(other)
    await bench.passes(0.4)
    assert not attempt.task.done()
    await bench.passes(0.1)
    await turn()
    assert attempt.task.cancelled()


async def test_one_that_is_over_by_then_or_only_holds_its_place_is_left_alone(bench: Bench) -> None:
    waiter = bench.join()
    over, late = bench.connect(), bench.connect()
    bench.gate.leave(waiter)
    bench.gate.end_connect(over)
    late.late = True
    await bench.passes(0.5)
    await turn()
    assert not over.task.done()
    assert not late.task.done()


async def test_a_connect_that_no_worker_has_in_hand_is_forgotten(bench: Bench) -> None:
    waiter = bench.join()
    kept, _ = bench.connect(), bench.connect()
    bench.gate.keep_connects({kept})
    bench.gate.end_connect(kept)
    await bench.passes(USUAL)
    assert told(waiter) == [AcquireTimeoutError]
    other = bench.join()
    bench.connect()
    bench.gate.keep_connects(set(bench.connects))
    await bench.passes(USUAL)
    assert told(other) == [ConnectTimeoutError]


async def test_after_a_freeze_only_what_was_due_before_is_ended(bench: Bench) -> None:
    old = bench.connect()
    bench.later(3.0)
    young = bench.connect()
    bench.gate.cancel_stale(clock.now(), 3.0)
    await turn()
    assert (old.task.cancelled(), young.task.done()) == (True, False)


# -- the breaker and the fleet -----------------------------------------------------------------------------------------


async def test_reports_reach_the_breaker(bench: Bench) -> None:
    now = clock.now()
    bench.fail()
    bench.fail(FailureKind.SILENT)  # of a statement: a pool that has a session is not alone
    assert (bench.breaker.state, bench.breaker.failures) == ("closed", 2)
    bench.gate.report(bench.breaker.generation, Verdict.NEUTRAL, now, FailureKind.ANSWERED, began=now)
    assert bench.breaker.failures == 2
    bench.gate.report(bench.breaker.generation, Verdict.SUCCESS, now, FailureKind.ANSWERED, began=now)
    assert bench.breaker.failures == 0


async def test_a_neutral_end_frees_the_place_of_a_trial(bench: Bench) -> None:
    permit, now = bench.trial().permit, clock.now()
    bench.gate.report(permit, Verdict.NEUTRAL, now, FailureKind.ANSWERED, began=now)
    assert bench.admits()


async def test_a_failure_that_does_not_open_the_circuit_harms_nobody_who_waits(bench: Bench) -> None:
    waiter, gone = bench.join(), bench.join()
    attempt = bench.connect()
    gone.future.cancel()
    bench.fail()
    assert told(waiter) == [None]
    await turn()
    assert not attempt.task.done()
    bench.fail()
    bench.fail()
    assert told(waiter) == [CircuitOpenError]
    assert bench.gate.waiting == 0
    await turn()
    assert attempt.task.cancelled()


@pytest.fixture
def words() -> Words:
    return Words()


async def heard_by(bench: Bench) -> None:
    """Ask for news as a caller does."""
    bulletin = bench.gate.bulletin_to_ask
    assert bulletin is not None
    bench.gate.hear(await bulletin.look(1.0), clock.now())


async def test_the_fleet_is_asked_while_it_would_change_something_and_told_of_each_change(
    make_bench: Callable[..., Bench], words: Words
) -> None:
    bulletin = Bulletin(lambda: words, 60.0)
    bench = make_bench(bulletin=bulletin)
    assert bench.gate.bulletin_to_ask is None
    bench.gate.succeeded(bench.gate.admit(clock.now()))
    bench.fail()
    bench.fail()
    await bulletin.settle(1.0)
    assert words.told == []
    bench.fail()
    await bulletin.settle(1.0)
    assert words.told == ["open"]
    assert bench.gate.bulletin_to_ask is bulletin
    bench.later(PERIOD)
    bench.gate.succeeded(bench.gate.admit(clock.now()))
    await bulletin.settle(1.0)
    assert words.told == ["open", "recovered"]
    assert bench.breaker.state == "closed"
    assert bench.gate.bulletin_to_ask is None


async def test_without_a_fleet_nobody_is_asked(bench: Bench) -> None:
    bench.trial()
    assert bench.gate.bulletin_to_ask is None


async def test_what_the_fleet_says_refuses_those_who_wait_if_it_opens_the_circuit(
    make_bench: Callable[..., Bench], words: Words
) -> None:
    bench = make_bench(bulletin=Bulletin(lambda: words, 60.0))
    now = clock.now()
    bench.gate.report(0, Verdict.FAILURE, now, FailureKind.ANSWERED, began=now, alone=True)
    waiter = bench.join()
    await heard_by(bench)
    assert told(waiter) == [None]
    words.news = {"open": 3}
    bench.later(1.0)  # the news of before are no longer fresh
    await heard_by(bench)
    assert told(waiter) == [CircuitOpenError]


async def test_whoever_waits_as_news_of_a_recovery_open_the_circuit_is_its_trial(
    make_bench: Callable[..., Bench], words: Words
) -> None:
    """Others have failed, too, but meanwhile the database works for somebody: this environment's turn is now."""
    bench = make_bench(bulletin=Bulletin(lambda: words, 60.0))
    began = clock.now()
    bench.later(1.0)
    bench.gate.report(0, Verdict.FAILURE, clock.now(), FailureKind.ANSWERED, began=began, alone=True)
    trial, other = bench.join(), bench.join()
    attempt = bench.connect()
    words.news = {"open": 3, "last": 0.5, "recovery": "ours", "since": 50.0}
    await heard_by(bench)
    assert told(trial, other) == [None, CircuitOpenError]
    assert bench.gate.first is trial
    await turn()
    assert attempt.task.cancelled()  # the next one is the trial's
    assert bench.gate.take_first() is trial
    bench.gate.succeeded(trial.permit)
    assert bench.breaker.state == "closed"

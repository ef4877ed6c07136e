"""The bookkeeping of the places, without a server: whatever happens in whatever order, no place is lost or made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncdb_guard.clock import NEVER, Instant
from asyncdb_guard.pool.connections import GROWTH_PAUSE, GROWTH_PAUSE_MAX, Connections

IDLE_TIMEOUT = 60.0


class Fake:
    """What `Connections` looks at of a connection."""

    def __init__(self, now: Instant) -> None:
        self.opened_at = self.idle_since = now
        self.expires_at = NEVER
        self.lease = 0
        self.closing = self.closed = self.suspect = False
        self.wanted = None
        self.holder: object = None

    def is_closed(self) -> bool:
        return self.closed

    def readable(self) -> bool:
        return self.suspect


NOW: Instant = (1000.0, 1000.0)


def later(seconds: float) -> Instant:
    return NOW[0] + seconds, NOW[1] + seconds


def places(pool_max: int = 2, **options: Any) -> Any:
    return Connections(pool_max, IDLE_TIMEOUT, **options)


def at_work(connections: Any, count: int = 1) -> list[Any]:
    """So many connections that have just been opened, with a worker each."""
    opened = [Fake(NOW) for _ in range(count)]
    for one in opened:
        connections.connected(object(), one)
    return opened


def idle(connections: Any, count: int = 1) -> list[Any]:
    """So many that rest, the last one since the shortest time."""
    resting = at_work(connections, count)
    for one in resting:
        connections.rest(one)
    return resting


def lent(connections: Any, count: int = 1) -> list[Any]:
    borrowed = at_work(connections, count)
    for one in borrowed:
        connections.lend(one)
    return borrowed


def connecting(connections: Any) -> object:
    attempt = object()
    connections.connecting.add(attempt)
    return attempt


def where(connections: Any) -> dict[str, int]:
    """How many connections and attempts have which kind of place."""
    names = ("connecting", "leaving", "idle", "lent", "at_work")
    return {name: len(getattr(connections, name)) for name in names if getattr(connections, name)}


def test_every_connection_and_every_connect_takes_one_place() -> None:
    connections = places(5)
    connecting(connections)
    assert connections.vacant == 4
    connections.give_up(connecting(connections))
    assert connections.vacant == 3
    resting, borrowed, working = *idle(connections), *lent(connections), *at_work(connections)
    assert connections.vacant == 0
    assert where(connections) == {"connecting": 1, "leaving": 1, "idle": 1, "lent": 1, "at_work": 1}
    assert connections.all == [resting, borrowed, working]


def test_the_one_used_last_is_lent_first() -> None:
    connections = places(2)
    first, second = idle(connections, 2)
    assert connections.take(NOW) is second
    assert (connections.idle, connections.lent) == ([first], {second})
    assert connections.take(NOW) is first
    assert connections.take(NOW) is None


def test_one_that_may_be_dead_is_not_lent_as_it_is() -> None:
    connections = places(1)
    (session,) = idle(connections)
    session.suspect = True
    assert connections.take(NOW) is None
    assert where(connections) == {"idle": 1}


@pytest.mark.parametrize(
    ("source", "way"),
    [
        (at_work, "rest"), (at_work, "lend"), (at_work, "put_to_work"),
        (lent, "rest"), (lent, "lend"), (lent, "put_to_work"),
        (idle, "put_to_work"),
    ],
)  # fmt: skip
def test_a_connection_that_changes_hands_has_one_owner(source: Callable[..., list[Any]], way: str) -> None:
    connections = places(1)
    (session,) = source(connections)
    session.lease = 7
    getattr(connections, way)(session)
    assert where(connections) == {{"rest": "idle", "lend": "lent", "put_to_work": "at_work"}[way]: 1}
    assert session.lease == (7 if way == "lend" else 0)


def test_a_place_is_vacant_when_the_server_has_let_go_and_once() -> None:
    connections = places(1)
    (session,) = at_work(connections)
    assert connections.remove(session) is True
    assert connections.vacant == 1
    assert connections.remove(session) is False


def test_a_connect_keeps_its_place_until_it_is_over() -> None:
    connections = places(1)
    attempt = connecting(connections)
    connections.give_up(attempt)
    assert where(connections) == {"leaving": 1}
    connections.let_go(attempt)
    assert where(connections) == {}
    connections.let_go(connecting(connections))
    assert where(connections) == {}
    attempt, session = connecting(connections), Fake(NOW)
    connections.connected(attempt, session)
    assert where(connections) == {"at_work": 1}


@pytest.mark.parametrize(
    ("prepare", "promising"),
    [
        (idle, False),  # no waiter waits beside one that it could have
        (connecting, True),
        (lent, True),
        (at_work, True),
    ],
)
def test_a_waiter_may_hope_for_whatever_is_in_somebodys_hands(prepare: Callable[..., object], promising: bool) -> None:
    connections = places()
    assert connections.promising is False
    prepare(connections)
    assert connections.promising is promising


@pytest.mark.parametrize("end", ["closing", "closed"])
@pytest.mark.parametrize("source", [lent, at_work])
def test_but_not_for_one_that_ends(source: Callable[..., list[Any]], end: str) -> None:
    connections = places()
    first, _ = source(connections, 2)
    setattr(first, end, True)
    assert connections.promising
    (second,) = (one for one in connections.all if one is not first)
    setattr(second, end, True)
    assert not connections.promising


def test_a_task_that_holds_every_connection_would_wait_for_itself() -> None:
    connections, task = places(2), object()
    first, second = lent(connections, 2)
    first.holder = second.holder = task
    assert connections.held_by(task) is True
    second.holder = object()
    assert connections.held_by(task) is False
    connections.put_to_work(second)
    assert connections.held_by(task) is False  # another one comes back
    connections.lend(second)
    first.holder = second.holder = None
    assert connections.held_by(None) is False  # anybody may return them


def test_the_pool_grows_while_there_is_a_vacancy_and_no_pause_unless_nothing_else_is_left() -> None:
    connections = places(2, draw=lambda low, high: high)
    assert connections.may_connect(NOW) is True
    lent(connections)
    assert connections.may_connect(NOW) is True
    connections.pause_growth(NOW)
    assert connections.may_connect(NOW) is False
    assert connections.may_connect(later(GROWTH_PAUSE - 0.01)) is False
    assert connections.may_connect(later(GROWTH_PAUSE)) is True
    for one in connections.lent:
        one.closing = True
    assert connections.may_connect(NOW) is True
    at_work(connections)
    assert connections.may_connect(later(GROWTH_PAUSE)) is False


def test_who_has_rested_for_the_idle_timeout_expires_though_a_timer_fires_a_little_early() -> None:
    connections = places(3)
    old, _, _ = idle(connections, 3)
    for one in connections.idle[1:]:
        one.idle_since = later(10.0)
    assert connections.expired(later(IDLE_TIMEOUT - 0.002)) == []
    assert connections.expired(later(IDLE_TIMEOUT - 0.0005)) == [old]
    assert len(connections.expired(later(IDLE_TIMEOUT + 10.0))) == 3


def test_the_next_expiry_is_that_of_the_one_that_has_rested_longest() -> None:
    connections = places(2)
    assert connections.next_expiry(NOW) is None
    first, _ = idle(connections, 2)
    first.idle_since = later(5.0)
    assert connections.next_expiry(later(15.0)) == IDLE_TIMEOUT - 15.0


class Places(RuleBasedStateMachine):
    """A model that only counts, beside the real thing."""

    @initialize(pool_max=st.integers(1, 5))
    def begin(self, pool_max: int) -> None:
        self.pool_max = pool_max
        self.time = 1000.0
        self.connections: Any = Connections(pool_max, IDLE_TIMEOUT, draw=lambda low, high: high)
        self.held: list[Any] = []
        self.working: list[Any] = []
        self.attempts: list[object] = []

    @property
    def now(self) -> Instant:
        return self.time, self.time

    @rule()
    def take(self) -> None:
        idle = list(self.connections.idle)
        taken = self.connections.take(self.now)
        if taken is None:
            assert not idle or idle[-1].closed or idle[-1].suspect or self.time - idle[-1].idle_since[0] >= 1.0
        else:
            assert taken is idle[-1]
            self.held.append(taken)

    @precondition(lambda self: self.connections.may_connect(self.now))
    @rule()
    def begin_connect(self) -> None:
        attempt = object()
        self.connections.connecting.add(attempt)
        self.attempts.append(attempt)

    @precondition(lambda self: self.attempts)
    @rule(succeeds=st.booleans())
    def end_connect(self, succeeds: bool) -> None:
        attempt = self.attempts.pop()
        if succeeds:
            connection = Fake(self.now)
            self.connections.connected(attempt, connection)
            self.working.append(connection)
            assert self.connections.growth_paused_for(self.now) == 0.0
        else:
            self.connections.give_up(attempt)
            self.connections.let_go(attempt)
            if self.connections.promising:
                pause = self.connections.pause_growth(self.now)
                assert 0.0 < pause <= GROWTH_PAUSE_MAX
                assert not self.connections.may_connect(self.now)

    @precondition(lambda self: self.held)
    @rule(to=st.sampled_from(["idle", "work", "another"]))
    def give_back(self, to: str) -> None:
        connection = self.held.pop()
        connection.idle_since = self.now
        if to == "idle":
            self.connections.rest(connection)
        elif to == "work":
            self.connections.put_to_work(connection)
            self.working.append(connection)
        else:
            self.connections.lend(connection)
            self.held.append(connection)

    @precondition(lambda self: self.connections.idle)
    @rule()
    def check_an_idle_one(self) -> None:
        connection = self.connections.idle[-1]
        self.connections.put_to_work(connection)
        self.working.append(connection)

    @precondition(lambda self: self.working)
    @rule(outcome=st.sampled_from(["idle", "lent", "closed"]))
    def end_work(self, outcome: str) -> None:
        connection = self.working.pop()
        if outcome == "idle":
            self.connections.rest(connection)
        elif outcome == "lent":
            self.connections.lend(connection)
            self.held.append(connection)
        else:
            assert self.connections.remove(connection)
            assert not self.connections.remove(connection)

    @rule(seconds=st.sampled_from([0.001, 0.5, 2.0, 10.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        expired = self.connections.expired(self.now)
        assert all(self.time - one.idle_since[0] >= IDLE_TIMEOUT - 0.01 for one in expired)
        rest = self.connections.next_expiry(self.now)
        assert (rest is None) == (not self.connections.idle)

    @precondition(lambda self: self.connections.idle)
    @rule()
    def make_one_suspect(self) -> None:
        self.connections.idle[-1].suspect = True

    @invariant()
    def every_place_has_one_owner(self) -> None:
        connections = self.connections
        assert connections.lent == set(self.held)
        assert connections.at_work == set(self.working)
        assert not set(connections.idle) & (connections.lent | connections.at_work)
        assert len(connections.all) == len(set(connections.all))
        assert connections.vacant == self.pool_max - len(connections.all) - len(self.attempts)
        assert 0 <= connections.vacant <= self.pool_max

    @invariant()
    def a_pool_without_connections_may_always_connect(self) -> None:
        connections = self.connections
        if connections.vacant and not (connections.lent or connections.at_work or connections.connecting):
            assert connections.may_connect(self.now)


TestPlaces = pytest.mark.slow(Places.TestCase)
TestPlaces.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)


def test_a_growth_pause_doubles_up_to_its_maximum_and_starts_afresh_after_a_success() -> None:
    connections: Any = Connections(5, IDLE_TIMEOUT, draw=lambda low, high: high)
    time = 0.0
    pauses = []
    for _ in range(8):
        pauses.append(connections.pause_growth((time, time)))
        time += pauses[-1]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    connections.connected(object(), Fake((time, time)))
    assert connections.pause_growth((time, time)) == GROWTH_PAUSE


def test_each_growth_pause_is_drawn_from_the_upper_half_so_that_a_fleet_does_not_try_together() -> None:
    drawn: list[tuple[float, float]] = []
    connections = places(draw=lambda low, high: drawn.append((low, high)) or high)
    connections.pause_growth(NOW)
    connections.pause_growth(later(GROWTH_PAUSE))
    assert drawn == [(0.125, 0.25), (0.25, 0.5)]
    assert 0.125 <= places().pause_growth(NOW) <= 0.25


def test_failures_at_the_same_time_make_one_pause() -> None:
    connections: Any = Connections(5, IDLE_TIMEOUT, draw=lambda low, high: high)
    assert connections.pause_growth((0.0, 0.0)) == GROWTH_PAUSE
    assert connections.pause_growth((0.125, 0.125)) == GROWTH_PAUSE - 0.125
    assert connections.growth_paused_for((GROWTH_PAUSE, GROWTH_PAUSE)) == 0.0

"""The bookkeeping of the places, without a server: whatever happens in whatever order, no place is lost or made up."""

from __future__ import annotations

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

    def is_closed(self) -> bool:
        return self.closed

    def readable(self) -> bool:
        return self.suspect


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


def test_failures_at_the_same_time_make_one_pause() -> None:
    connections: Any = Connections(5, IDLE_TIMEOUT, draw=lambda low, high: high)
    assert connections.pause_growth((0.0, 0.0)) == GROWTH_PAUSE
    assert connections.pause_growth((0.125, 0.125)) == GROWTH_PAUSE - 0.125
    assert connections.growth_paused_for((GROWTH_PAUSE, GROWTH_PAUSE)) == 0.0

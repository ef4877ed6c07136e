"""Where each connection of the pool is, and what should happen next. Pure: no task, no I/O, no clock of its own.

There are `pool_max` places. Each is vacant, being connected, idle, lent, or at work: a worker checks, resets or closes
its connection. A place is vacant again only when the server has let go of the session that had it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from asyncdb_guard.clock import LONG_AGO, Instant, elapsed
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.pool.health import Health, health_of

GROWTH_PAUSE, GROWTH_PAUSE_MAX = 0.25, 8.0
"""Seconds for which the pool stops growing after a connect failed while other connections were in use, and the most
that this doubles to with each further failure."""

_TIMER_TICK = 0.001
"""Seconds by which a timer may fire early."""


class Connections:
    """The places of one pool; lives as long as its event loop."""

    __slots__ = (
        "_draw", "_failed_at", "_idle_timeout", "_pause", "_pause_doubled", "at_work", "connecting", "idle", "leaving",
        "lent",
        "pool_max",
    )  # fmt: skip

    def __init__(
        self, pool_max: int, idle_timeout: float, *, draw: Callable[[float, float], float] | None = None
    ) -> None:
        self.pool_max = pool_max
        self._idle_timeout = idle_timeout
        self._draw = draw or random.SystemRandom().uniform
        self.connecting: set[object] = set()
        """The connect attempts in progress."""
        self.leaving: set[object] = set()
        """Attempts that were given up, whose places are taken until the server has let go."""
        self.idle: list[PooledConnection] = []
        """The one used last is the last."""
        self.lent: set[PooledConnection] = set()
        self.at_work: set[PooledConnection] = set()
        self._failed_at = LONG_AGO
        self._pause = self._pause_doubled = 0.0

    @property
    def vacant(self) -> int:
        """How many places no session has."""
        return (
            self.pool_max
            - len(self.connecting)
            - len(self.leaving)
            - len(self.idle)
            - len(self.lent)
            - len(self.at_work)
        )

    @property
    def all(self) -> list[PooledConnection]:
        """Every connection that has a place."""
        return [*self.idle, *self.lent, *self.at_work]

    @property
    def promising(self) -> bool:
        """Whether a waiter may still get a connection without a new connect."""
        return bool(self.connecting) or any(not (one.closing or one.is_closed()) for one in (*self.lent, *self.at_work))

    def take(self, now: Instant) -> PooledConnection | None:
        """Lend the idle connection that was used last, if it is in good health. The hot path."""
        idle = self.idle
        if not idle or health_of(idle[-1], self._idle_timeout, now) is not Health.GOOD:
            return None
        # here and below the new owner comes first: a connection torn between two has two, never none
        self.lent.add(idle[-1])
        return idle.pop()

    def lend(self, connection: PooledConnection) -> None:
        """A waiter gets a connection that was at work or has just been returned."""
        self.lent.add(connection)
        self.at_work.discard(connection)

    def rest(self, connection: PooledConnection) -> None:
        """A connection becomes idle."""
        connection.lease = 0
        self.idle.append(connection)
        self.lent.discard(connection)
        self.at_work.discard(connection)

    def put_to_work(self, connection: PooledConnection) -> None:
        """A worker takes a connection over."""
        connection.lease = 0
        self.at_work.add(connection)
        self.lent.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def remove(self, connection: PooledConnection) -> bool:
        """The server has let go of a session: its place is vacant. Return whether it still had one."""
        had_place = connection in self.at_work
        self.at_work.discard(connection)
        return had_place

    def give_up(self, attempt: object) -> None:
        """A connect failed or is unwanted; its place stays taken until `let_go`."""
        self.leaving.add(attempt)
        self.connecting.discard(attempt)

    def let_go(self, attempt: object) -> None:
        """A connect is over, one way or the other."""
        self.connecting.discard(attempt)
        self.leaving.discard(attempt)

    def connected(self, attempt: object, connection: PooledConnection) -> None:
        """A connect succeeded; its worker goes on with the connection. The pool may grow again."""
        self.connecting.discard(attempt)
        self.at_work.add(connection)
        self._pause = self._pause_doubled = 0.0

    def pause_growth(self, now: Instant) -> float:
        """A connect failed while others are in use: stop growing for a while. Return its length in seconds."""
        if self.growth_paused_for(now) == 0.0:
            self._pause_doubled = min(self._pause_doubled * 2 or GROWTH_PAUSE, GROWTH_PAUSE_MAX)
            self._pause = self._draw(self._pause_doubled / 2, self._pause_doubled)
            self._failed_at = now
        return self.growth_paused_for(now)

    def growth_paused_for(self, now: Instant) -> float:
        """Seconds for which the pool still must not grow."""
        return max(self._pause - elapsed(self._failed_at, now), 0.0)

    def held_by(self, task: object) -> bool:
        """Whether `task` itself holds every session that the pool may have, so that it would wait for itself."""
        return task is not None and len(self.lent) == self.pool_max and all(one.holder is task for one in self.lent)

    def may_connect(self, now: Instant) -> bool:
        """Whether one more connection may be opened now."""
        return self.vacant > 0 and (self.growth_paused_for(now) == 0.0 or not self.promising)

    def expired(self, now: Instant) -> list[PooledConnection]:
        """The idle connections that nobody has used for as long as the idle timeout."""
        return [one for one in self.idle if elapsed(one.idle_since, now) >= self._idle_timeout - _TIMER_TICK]

    def next_expiry(self, now: Instant) -> float | None:
        """Seconds until the next idle connection expires; None if there is none."""
        # the larger of two clocks can put a later one first: look at all
        return _smallest(self._idle_timeout - elapsed(one.idle_since, now) for one in self.idle)


def _smallest(seconds: Iterable[float]) -> float | None:
    return min(seconds, default=None)

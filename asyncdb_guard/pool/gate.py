"""Who waits for a connection, who is refused, and who is blamed: the waiters, the connect attempts and the breaker.

They are one room because each outcome concerns all three. A connect that fails is one waiter's failure and one report
to the breaker; a report that opens the circuit refuses all waiters and ends all connect attempts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Container, Iterator

from asyncdb_guard import clock
from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.errors import AcquireTimeoutError, CircuitOpenError, GuardError, PoolClosedError
from asyncdb_guard.events import AcquireTimeout, Events
from asyncdb_guard.failure_kind import FailureKind, failure_kind
from asyncdb_guard.pool.lease import Lease
from asyncdb_guard.verdict import Verdict, judge_connect

_UNWANTED_CONNECT_TIMEOUT = 0.5
"""Seconds for which a connect goes on after the last waiter has left: a healthy one is through by then, and one that
hangs must not hold up whoever comes next."""

_FULL = (
    "No connection became free within {:.2f} s. Return connections sooner, wait longer"
    " (LAMBDA_DATABASE_CONNECT_TIMEOUT_MS), or raise LAMBDA_DATABASE_POOL_MAX."
)
_CANNOT_GROW = "No connection became free within {:.2f} s, and the pool could not open another one. {}"


class Waiter:
    """A borrower in the queue; lives until it has a connection or an error."""

    __slots__ = ("deadline", "future", "permit", "since", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, future: asyncio.Future[Lease], permit: int, since: Instant, deadline: float) -> None:
        self.future = future
        self.permit = permit
        self.since = since
        self.deadline = deadline
        """On the event loop's own clock."""


class ConnectAttempt:
    """A connect in progress; lives until it has succeeded or failed."""

    __slots__ = ("alone", "late", "reported_at", "since", "task")

    task: asyncio.Task[None]

    def __init__(self, now: Instant, *, alone: bool) -> None:
        self.since = now
        self.alone = alone
        """Whether the pool has had no session since it began."""
        self.late = False
        """Whether it has been given up, and only holds its place until the server has let go."""
        self.reported_at: Instant | None = None
        """When a waiter whose time was over reported it last."""


class Gate:
    """Admits borrowers, keeps the queue and judges connects; lives as long as its event loop.

    Waiters are served first come, first served. Joining, leaving and serving cost the same at any length.
    """

    def __init__(self, breaker: CircuitBreaker, connect_timeout: float, renews_login: bool, events: Events) -> None:
        self._loop = asyncio.get_running_loop()
        self._breaker = breaker
        self._connect_timeout = connect_timeout
        self._renews_login = renews_login
        self._events = events
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._attempts: list[ConnectAttempt] = []
        self._growth_error: str | None = None
        """Why the pool could not grow, if its last connect failed while other connections were in use."""
        self.admit = breaker.admit
        self.succeeded = breaker.succeeded

    @property
    def waiting(self) -> int:
        """How many borrowers wait."""
        return len(self._waiters)

    @property
    def first(self) -> Waiter | None:
        """Whoever has waited longest, and still waits."""
        return next((waiter for waiter in self._waiters if not waiter.future.done()), None)

    # -- the queue ---------------------------------------------------------------------------------------------------

    def join(self, permit: int, timeout: float, now: Instant) -> Waiter:
        """Queue for a connection, for at most `timeout` seconds."""
        waiter = Waiter(self._loop.create_future(), permit, now, self._loop.time() + timeout)
        waiter.timer = self._loop.call_at(waiter.deadline, self._time_out, waiter)
        self._waiters[waiter] = None
        return waiter

    def take_first(self) -> Waiter | None:
        """Take whoever has waited longest out of the queue, to be served."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.future.done():  # its task may have been cancelled, and not have run yet
                return waiter
        return None

    def leave(self, waiter: Waiter) -> Lease | None:
        """A waiter gives up. Return the lease that came at the same moment, if one did."""
        if waiter.future.cancel() or waiter.future.cancelled():
            self._remove(waiter)
        elif waiter.future.exception() is not None:
            return None  # it was refused, and its permit reported, already
        self._breaker.released(waiter.permit)
        return None if waiter.future.cancelled() else waiter.future.result()

    def readmit(self, waiter: Waiter, now: Instant) -> int:
        """Ask the breaker again after the wait. Raises CircuitOpenError."""
        return waiter.permit if waiter.permit == self._breaker.generation else self._breaker.admit(now)

    def close(self) -> None:
        """Send everybody away: the pool is closed."""
        for waiter in self._take_out():
            waiter.future.set_exception(PoolClosedError())
            self._breaker.released(waiter.permit)
        self._cancel_unwanted()

    def _time_out(self, waiter: Waiter) -> None:
        if waiter.future.done():
            return
        self._remove(waiter)
        now = clock.now()
        waited = elapsed(waiter.since, now)
        self._events.emit(AcquireTimeout(waited))
        attempt = self._attempts[0] if self._attempts else None  # the one that has lasted longest
        if attempt is None:
            text = (
                _FULL.format(waited) if self._growth_error is None else _CANNOT_GROW.format(waited, self._growth_error)
            )
            waiter.future.set_exception(AcquireTimeoutError(text))
            self._breaker.released(waiter.permit)
            return
        waiter.future.set_exception(connect_error(TimeoutError()))
        enough = self._connect_timeout / 2  # whoever had less time has not seen enough to report a failure
        reported = attempt.reported_at is not None and elapsed(attempt.reported_at, now) < enough
        if reported or min(waited, elapsed(attempt.since, now)) < enough:
            self._breaker.released(waiter.permit)
        else:
            attempt.reported_at = now
            self.report(waiter.permit, Verdict.FAILURE, now, FailureKind.SILENT, alone=attempt.alone)

    def _remove(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)
        if not self._waiters:
            self._cancel_unwanted()

    def _take_out(self) -> Iterator[Waiter]:
        """Take waiters out, the oldest first, without those whose task was cancelled but has not run yet."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.future.done():
                yield waiter

    # -- connect attempts --------------------------------------------------------------------------------------------

    def begin_connect(self, now: Instant, *, alone: bool) -> ConnectAttempt:
        """A connect begins. `alone`: the pool has no session."""
        attempt = ConnectAttempt(now, alone=alone)
        self._attempts.append(attempt)
        return attempt

    def end_connect(self, attempt: ConnectAttempt) -> None:
        """A connect is over, if it was not before."""
        if attempt in self._attempts:
            self._attempts.remove(attempt)

    def keep_connects(self, running: Container[object]) -> None:
        """Forget the connects that no worker has in hand: waiters must not be told that they wait for one of them."""
        self._attempts = [attempt for attempt in self._attempts if attempt in running]

    def connect_succeeded(self) -> None:
        """The pool can grow again."""
        self._growth_error = None
        for attempt in self._attempts:
            attempt.alone = False

    def connect_failed(self, attempt: ConnectAttempt, cause: Exception, *, promising: bool) -> None:
        """Decide who gets the error of a failed connect.

        Nobody, while another connection or connect is promising: waiters can still get that one. Else whoever has
        waited longest; the others get a connect of their own. If nobody waits any more, nobody saw it fail: those who
        left had not waited long enough to tell.
        """
        renewed = self._renews_login
        error = cause if isinstance(cause, GuardError) else connect_error(cause, renewed=renewed)
        if promising:
            self._growth_error = str(error)
            return
        if attempt.reported_at is not None:
            return
        for waiter in self._take_out():
            waiter.future.set_exception(error)
            verdict = judge_connect(cause, renewed=renewed)
            self.report(waiter.permit, verdict, clock.now(), failure_kind(cause), alone=attempt.alone)
            return

    def _cancel_unwanted(self) -> None:
        """The last waiter has left the queue: end soon what still hangs."""
        for attempt in self._attempts:
            self._loop.call_later(_UNWANTED_CONNECT_TIMEOUT, self._cancel_attempt, attempt)

    def _cancel_attempt(self, attempt: ConnectAttempt) -> None:
        if attempt in self._attempts and not attempt.late:
            attempt.task.cancel()

    def cancel_stale(self, now: Instant, age: float) -> None:
        """End what was due before the process was frozen: connects begun more than `age` seconds ago."""
        for attempt in self._attempts:
            if elapsed(attempt.since, now) >= age:
                attempt.task.cancel()

    # -- the breaker -------------------------------------------------------------------------------------------------

    def report(self, permit: int, verdict: Verdict, now: Instant, kind: FailureKind, *, alone: bool = False) -> None:
        """Report to the breaker. If that opens the circuit, refuse all waiters and end all connect attempts.

        `kind` is that of a failure; `alone`: it was a connect, of a pool that has no session besides.
        """
        if verdict is Verdict.SUCCESS:
            self._breaker.succeeded(permit)
        elif verdict is Verdict.NEUTRAL:
            self._breaker.released(permit)
        else:
            before = self._breaker.generation
            self._breaker.failed(permit, now, kind, alone=alone)
            if self._breaker.generation != before:
                self._refuse_all(now)

    def _refuse_all(self, now: Instant) -> None:
        for waiter in self._take_out():
            try:
                self._breaker.admit(now)
            except CircuitOpenError as error:
                waiter.future.set_exception(error)
        for attempt in self._attempts:  # nothing connects behind an open circuit
            self._cancel_attempt(attempt)

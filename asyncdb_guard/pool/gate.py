"""Who waits for a connection, who is refused, and who is blamed: the waiters, the connect attempts and the breaker.

They are one room because each outcome concerns all three. A connect that fails is one waiter's failure and one report
to the breaker; a report that opens the circuit refuses all waiters and ends all connect attempts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, NoReturn

from asyncdb_guard import clock
from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.connect.initialization import InitFailedError
from asyncdb_guard.errors import AcquireTimeoutError, CircuitOpenError, GuardError, PoolClosedError
from asyncdb_guard.events import AcquireTimeout, Events
from asyncdb_guard.failures import FailureKind, Verdict, failure_kind, judge, judge_connect
from asyncdb_guard.news import News
from asyncdb_guard.pool.connect_attempt import ConnectAttempt
from asyncdb_guard.pool.lease import Lease
from asyncdb_guard.redaction import type_name
from asyncdb_guard.settings import DatabaseSettings

if TYPE_CHECKING:
    from asyncdb_guard.bulletin.board import Bulletin

_UNWANTED_CONNECT_TIMEOUT = 0.5
"""Seconds for which a connect goes on after the last waiter has left: a healthy one is through by then, and one that
hangs must not hold up whoever comes next."""

_FULL = (
    "No connection became free within {:.2f} s. Return connections sooner, wait longer"
    " (LAMBDA_DATABASE_CONNECT_TIMEOUT_MS), or raise LAMBDA_DATABASE_POOL_MAX."
)
_NESTED = (
    "No connection can become free: this task already holds every connection that the pool may have, and would wait for"
    " itself. Use the connection of the outer block, end that block first, or raise LAMBDA_DATABASE_POOL_MAX."
)
_CANNOT_GROW = "No connection became free within {:.2f} s, and the pool could not open another one. {}"


class Waiter:
    """A borrower in the queue; lives until it has a connection or an error."""

    __slots__ = ("deadline", "future", "permit", "since", "timer")

    def __init__(self, future: asyncio.Future[Lease], permit: int, since: Instant, deadline: float) -> None:
        self.future = future
        self.permit = permit
        self.since = since
        self.deadline = deadline
        """On the event loop's own clock."""
        self.timer: asyncio.TimerHandle | None = None
        """Its own, unless it waits for as long as most do."""


class Gate:
    """Admits borrowers, keeps the queue and judges connects; lives as long as its event loop.

    Waiters are served first come, first served. Joining, leaving and serving cost the same at any length.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        bulletin: Bulletin | None,
        settings: DatabaseSettings,
        events: Events,
        *,
        renews_login: bool,
        passwordless: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._breaker = breaker
        self.bulletin = bulletin
        self._connect_timeout = settings.connect_timeout
        self._command_timeout = settings.command_timeout
        self._renews_login = renews_login
        self._passwordless = passwordless
        self._events = events
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._usual: deque[Waiter] = deque()
        """Those with the usual timeout, the earliest deadline first. One timer serves them all: a timer for each would
        cost as much as the rest of a wait."""
        self._timer: asyncio.TimerHandle | None = None
        self._attempts: list[ConnectAttempt] = []
        self._growth_error: str | None = None
        """Why the pool could not grow, if its last connect failed while other connections were in use."""
        self.admit = breaker.admit
        self.succeeded = breaker.succeeded if bulletin is None else self._succeeded

    @property
    def waiting(self) -> int:
        """How many borrowers wait."""
        return len(self._waiters)

    @property
    def first(self) -> Waiter | None:
        """Whoever has waited longest, and still waits."""
        return next((waiter for waiter in self._waiters if not waiter.future.done()), None)

    # -- the fleet ---------------------------------------------------------------------------------------------------

    @property
    def bulletin_to_ask(self) -> Bulletin | None:
        """The fleet's bulletin, if it should be asked before the next caller is admitted."""
        return self.bulletin if self.bulletin is not None and self._breaker.wants_news else None

    def hear(self, news: News | None, now: Instant) -> None:
        """Tell the breaker what the fleet says. If that opens the circuit, refuse all waiters."""
        before = self._breaker.generation
        self._breaker.hear(news, now)
        if self._breaker.generation != before:
            self._refuse_all(now)

    def _succeeded(self, permit: int) -> None:
        before = self._breaker.generation
        self._breaker.succeeded(permit)
        if self.bulletin is not None and self._breaker.generation != before:
            self.bulletin.tell_recovered()

    # -- the queue ---------------------------------------------------------------------------------------------------

    def join(self, permit: int, timeout: float, now: Instant) -> Waiter:
        """Queue for a connection, for at most `timeout` seconds."""
        waiter = Waiter(self._loop.create_future(), permit, now, self._loop.time() + timeout)
        if timeout == self._connect_timeout:
            self._usual.append(waiter)
            if self._timer is None:
                self._timer = self._loop.call_at(waiter.deadline, self._time_out_usual)
        else:
            waiter.timer = self._loop.call_at(waiter.deadline, self._time_out, waiter)
        self._waiters[waiter] = None
        return waiter

    def end_wait(self, waiter: Waiter) -> None:
        """A wait is over, one way or the other."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        usual = self._usual
        while usual and usual[0].future.done():
            usual.popleft()

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

    def confirm(self, permit: int) -> int:
        """A block that goes on has found the database working; return the permit to report its end with."""
        self.succeeded(permit)
        return self._breaker.generation if self._breaker.state == "closed" else permit

    def close(self) -> None:
        """Send everybody away: the pool is closed."""
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._take_out():
            waiter.future.set_exception(PoolClosedError())
            self._breaker.released(waiter.permit)
        self._cancel_unwanted()

    def refuse_nested(self, permit: int) -> NoReturn:
        """A borrower would wait for itself. Raises AcquireTimeoutError at once."""
        self._breaker.released(permit)
        self._events.emit(AcquireTimeout(0.0))
        raise AcquireTimeoutError(_NESTED)

    def _time_out_usual(self) -> None:
        self._timer = None
        usual = self._usual
        now = self._loop.time()
        try:
            while usual and (usual[0].future.done() or usual[0].deadline <= now):
                self._time_out(usual[0])
                usual.popleft()
        finally:  # also where an exception from a signal handler comes in between
            if usual:
                self._timer = self._loop.call_at(usual[0].deadline, self._time_out_usual)

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
        if attempt.counts_as_silent(waited, now, self._connect_timeout):
            attempt.reported_at = now
            self.report(
                waiter.permit, Verdict.FAILURE, now, FailureKind.SILENT, began=attempt.since, alone=attempt.alone
            )
        else:
            self._breaker.released(waiter.permit)

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
        """A connect failed: give its error to whoever gets it, and report that to the breaker.

        If nobody waits any more, nobody saw it fail: those who left had not waited long enough to tell.
        """
        renewed = self._renews_login
        error: BaseException
        if isinstance(cause, InitFailedError):
            error, alone = cause.error, False
            reason = f"init= raised {type_name(error)}."
            verdict = judge(error, lost=cause.lost, command_timeout=self._command_timeout)
        else:
            error = cause
            if not isinstance(cause, GuardError):
                error = connect_error(cause, renewed=renewed, passwordless=self._passwordless)
            alone = attempt.alone
            reason = str(error)
            verdict = judge_connect(cause, renewed=renewed)
        if promising:
            self._growth_error = reason
        if not attempt.fails_a_waiter(promising=promising):
            return
        for waiter in self._take_out():
            waiter.future.set_exception(error)
            self.report(waiter.permit, verdict, clock.now(), failure_kind(error), began=attempt.since, alone=alone)
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

    def report(
        self, permit: int, verdict: Verdict, now: Instant, kind: FailureKind, *, began: Instant, alone: bool = False
    ) -> None:
        """Report to the breaker. If that opens the circuit, refuse all waiters and end all connect attempts.

        `kind` is that of a failure; `began`: when what is reported began; `alone`: it was a connect, of a pool that has
        no session besides.
        """
        if verdict is Verdict.SUCCESS:
            self.succeeded(permit)
        elif verdict is Verdict.NEUTRAL:
            self._breaker.released(permit)
        else:
            before = self._breaker.generation
            self._breaker.failed(permit, now, kind, alone=alone, began=began)
            if self._breaker.generation != before:
                self._refuse_all(now)
                if self.bulletin is not None:
                    self.bulletin.tell_open()

    def _refuse_all(self, now: Instant) -> None:
        for waiter in tuple(self._take_out()):
            try:
                waiter.permit = self._breaker.admit(now)
            except CircuitOpenError as error:
                waiter.future.set_exception(error)
            else:
                self._waiters[waiter] = None  # the trial: the fleet has told of a recovery
        for attempt in self._attempts:  # nothing connects behind an open circuit
            self._cancel_attempt(attempt)

"""Sessions for borrowers, on one event loop: the wait for one, the way back, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from socket import socket

from asyncdb_guard import clock
from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.connect.session import Session
from asyncdb_guard.errors import AcquireTimeoutError, CircuitOpenError, PoolClosedError
from asyncdb_guard.events import AcquireTimeout, Events
from asyncdb_guard.pool.slots import Slots
from asyncdb_guard.pool.stats import Counters
from asyncdb_guard.pool.waiting import Waiter, WaitQueue
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.verdict import Verdict

_PARTING = 0.1
"""Seconds for which a borrower whose block failed waits for the server to confirm that its statement has stopped."""

_FULL = (
    "No connection became free within {:.2f} s; give connections back sooner, wait for longer"
    " (LAMBDA_DATABASE_CONNECT_TIMEOUT_MS), or raise LAMBDA_DATABASE_POOL_MAX."
)

_LAST_SECOND = 1.0
"""Seconds for all goodbyes when the event loop is about to end."""


class Lending:
    """Lends the sessions of one pool; lives as long as its event loop, or until it is closed."""

    def __init__(
        self,
        settings: DatabaseSettings,
        credentials: Credentials,
        breaker: CircuitBreaker,
        events: Events,
        counters: Counters,
        leaving: Sequence[socket] = (),
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._connect_timeout = settings.connect_timeout
        self.breaker = breaker
        self._events = events
        self._counters = counters
        self.queue = WaitQueue()
        self.slots = Slots(
            settings, Connector(settings, credentials, leaving), self.queue, events, counters, self.report
        )
        self._loop_end_hook: AsyncGenerator[None, None] | None = None
        self.closed = False

    async def wait(self, permit: int, timeout: float, since: Instant) -> tuple[Session, int]:
        """Queue for a session, at most `timeout` seconds; settle the permit if none comes.

        Return the session and the permit to report with, since the breaker is asked again after the wait.
        """
        if self._loop_end_hook is None:
            self._loop_end_hook = _until_the_loop_ends(self)
            await anext(self._loop_end_hook)
        waiter = Waiter(self.loop.create_future(), permit, since, self.loop.time() + timeout)
        timer = self.loop.call_at(waiter.deadline, self._expire, waiter)
        self.queue.join(waiter)
        self.slots.work()
        try:
            session = await waiter.future
        except (asyncio.CancelledError, GeneratorExit):  # the latter where somebody closes the waiting coroutine
            self.breaker.released(permit)
            if waiter.future.cancel() or waiter.future.cancelled():
                self._leave(waiter)
            elif waiter.future.exception() is None:  # the session came, and then the cancellation
                self.slots.give_back(waiter.future.result(), clock.now())
            raise
        finally:
            timer.cancel()
        if permit != self.breaker.generation:
            try:
                permit = self.breaker.admit(clock.now())
            except CircuitOpenError:
                self.slots.give_back(session, clock.now())
                raise
        return session, permit

    def _leave(self, waiter: Waiter) -> None:
        self.queue.leave(waiter)
        if not self.queue:
            self.slots.dials.nobody_waits()

    def _expire(self, waiter: Waiter) -> None:
        if waiter.future.done():
            return
        self._leave(waiter)
        now = clock.now()
        waited = elapsed(waiter.since, now)
        self._events.emit(AcquireTimeout(waited))
        dial = self.slots.dials.oldest
        if dial is None:
            waiter.future.set_exception(AcquireTimeoutError(_FULL.format(waited)))
            self.breaker.released(waiter.permit)
            return
        waiter.future.set_exception(connect_error(TimeoutError()))
        if dial.blamed or min(waited, elapsed(dial.since, now)) < self._connect_timeout / 2:
            # one failure a connect; and with a small remainder of its own a caller has not seen enough to report one
            self.breaker.released(waiter.permit)
        else:
            dial.blamed = True
            self.report(waiter.permit, Verdict.FAILURE, now)

    def report(self, permit: int, verdict: Verdict, now: Instant) -> None:
        """Report to the breaker. If that opens the circuit, whoever still queues is refused."""
        if verdict is Verdict.SUCCESS:
            self.breaker.succeeded(permit)
        elif verdict is Verdict.NEUTRAL:
            self.breaker.released(permit)
        else:
            before = self.breaker.generation
            self.breaker.failed(permit, now)
            if self.breaker.generation != before:
                self.queue.refuse(self.breaker, now)
                self.slots.dials.cancel()

    async def tidy_after_failure(self, session: Session) -> None:
        """Make a session fit for the next borrower; one whose block failed, or was cancelled, doesn't wait for long.

        Such a block may have left a statement running, of which asyncpg tells nothing.
        """
        # no shield: it would raise here when the end of the pool cancels that task
        await asyncio.wait({self.slots.tidy_apart(session)}, timeout=_PARTING)

    async def close(self, timeout: float, *, patient: bool = True, reason: str = "close") -> None:
        """End all sessions within `timeout` seconds. Patience gives the borrowers three quarters of it to finish."""
        self.closed = True
        for waiter in self.queue.drain():
            waiter.future.set_exception(PoolClosedError())
            self.breaker.released(waiter.permit)
        end = self.loop.time() + timeout
        try:
            if patient:
                await self.slots.nobody_borrows(timeout * 3 / 4)  # the rest is for the goodbyes
        finally:  # also where the caller ran out of patience
            await self.slots.end(reason, max(end - self.loop.time(), 0.0))
            await self._dismiss_hook()

    async def disconnect(self, timeout: float) -> None:
        """End all sessions within `timeout` seconds; whoever queues or comes later gets a new one."""
        await self.slots.drop("close", timeout)

    async def loop_ends(self) -> None:
        """What the hook does in the end, unless it was dismissed before."""
        if self._loop_end_hook is not None:
            self._loop_end_hook = None
            # asyncio/base_events.py: shutdown_asyncgens() closes all generators at once, and a user's own may hold a
            # connection, or want one in its last words
            await asyncio.sleep(0)
            await self.close(_LAST_SECOND, reason="loop_closed")

    async def _dismiss_hook(self) -> None:
        hook, self._loop_end_hook = self._loop_end_hook, None
        if hook is not None:
            await hook.aclose()

    def _dismiss_hook_now(self) -> None:
        hook, self._loop_end_hook = self._loop_end_hook, None
        if hook is not None:
            # it has nothing to wait for any more, so its end needs no event loop
            with contextlib.suppress(StopIteration):
                hook.aclose().__await__().__next__()

    def abandon(self) -> list[socket]:
        """Let go without the loop, which has ended rudely or is not ours to run; return what remains."""
        self.closed = True
        self._dismiss_hook_now()
        return self.slots.abandon()

    def disown(self) -> None:
        """Let go in a forked child: these sessions are the parent's, who still uses them."""
        self.closed = True
        self._dismiss_hook_now()
        self.slots.disown()


async def _until_the_loop_ends(lending: Lending) -> AsyncGenerator[None, None]:
    """Close the sessions together with their loop.

    asyncio/runners.py: `Runner.close` runs `loop.shutdown_asyncgens`, and so does every well-behaved owner of a loop:
    that is the one hook a loop has for its end.
    """
    try:
        yield
    finally:
        await lending.loop_ends()

"""The pool on one event loop: take, wait, release, close."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from socket import socket
from typing import TYPE_CHECKING

from asyncdb_guard import clock
from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.initialization import Init
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.errors import AcquireTimeoutError
from asyncdb_guard.events import ConnectionClosed, ConnectionHeld, Events, logger
from asyncdb_guard.failures import Verdict, failure_kind, judge, server_spoke, unfit
from asyncdb_guard.pool.connections import Connections
from asyncdb_guard.pool.gate import Gate
from asyncdb_guard.pool.lease import Lease
from asyncdb_guard.pool.stats import Counters
from asyncdb_guard.pool.workers import Workers
from asyncdb_guard.settings import DatabaseSettings

if TYPE_CHECKING:
    from asyncdb_guard.bulletin.board import Bulletin

_LOOP_CLOSE_TIMEOUT = 1.0
"""Seconds for all goodbyes when the event loop is about to end."""


class LoopPool:
    """Lends the connections of one pool; lives as long as its event loop, or until it is closed."""

    def __init__(
        self,
        settings: DatabaseSettings,
        credentials: Credentials,
        traits: ServerTraits,
        breaker: CircuitBreaker,
        bulletin: Bulletin | None,
        events: Events,
        counters: Counters,
        lingering: Sequence[socket] = (),
        init: Init | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        connector = Connector(settings, credentials, traits, lingering, init)
        self.gate = Gate(
            breaker,
            bulletin,
            settings,
            events,
            renews_login=connector.renews_login,
            passwordless=connector.passwordless,
        )
        self.connections = Connections(settings.pool_max, settings.idle_timeout)
        self.workers = Workers(settings, connector, self.connections, self.gate, events, counters)
        self._emit = events.emit
        self._counters = counters
        self.hold_warning = settings.hold_warning
        self._idle_timeout = settings.idle_timeout
        self._command_timeout = settings.command_timeout
        # half of what a statement gets at most, as for a connect; whoever had less has not seen enough to tell
        self._patience = min(settings.command_timeout, settings.handler_budget) / 2
        self._loop_end_hook: AsyncGenerator[None, None] | None = None
        self._loop_is_ending = False
        self.closed = False

    def take(self, permit: int, now: Instant) -> Lease | None:
        """Borrow an idle connection in good health, if there is one and nobody waits. No task and no wait."""
        if self.gate.waiting:
            return None
        connection = self.connections.take(now)
        return Lease(connection, permit, now, self.workers.reclaim) if connection is not None else None

    async def wait(self, permit: int, timeout: float, now: Instant) -> Lease:
        """Queue for a connection, for at most `timeout` seconds. The breaker is asked again after the wait."""
        if self.connections.held_by(asyncio.current_task()):
            await self._refuse_nested(permit, now)
        if self._loop_end_hook is None and not self._loop_is_ending:
            self._loop_end_hook = _close_with_loop(self)
            await anext(self._loop_end_hook)
        waiter = self.gate.join(permit, timeout, now)
        self.workers.give_up_stale(now)
        self.workers.serve_waiters()
        try:
            lease = await waiter.future
            lease.since = clock.now()
            lease.permit = self.gate.readmit(waiter, lease.since)
        except AcquireTimeoutError:
            self.workers.reclaim_all()
            raise
        except BaseException:  # a refusal, a cancellation, the end of a closed coroutine, a signal handler's exception
            unwanted = self.gate.leave(waiter)
            if unwanted is not None:
                self._return(unwanted, clock.now())
            raise
        finally:
            self.gate.end_wait(waiter)
        return lease

    async def _refuse_nested(self, permit: int, now: Instant) -> None:
        try:
            await asyncio.sleep(0)  # a borrow that was forgotten just now is collected in the loop's next round
        except BaseException:
            self.gate.report(permit, Verdict.NEUTRAL, now, failure_kind(None), began=now)
            raise
        if self.connections.held_by(asyncio.current_task()):
            self.gate.refuse_nested(permit)

    def watch(self, lease: Lease, place: str) -> None:
        """Tell where a connection was borrowed, if it is held for longer than HOLD_WARNING."""
        # without the lease, which would then not be collected where its borrower forgets it
        borrow = lease.connection, lease.number, lease.since, place
        lease.timer = self.loop.call_later(self.hold_warning, self._warn_of_hold, *borrow)

    def _warn_of_hold(self, connection: PooledConnection, number: int, since: Instant, place: str) -> None:
        if connection.lease != number:
            return
        held = elapsed(since, clock.now())
        logger.warning(
            "A block has held its connection for %.1f s; it was borrowed at %s. End the block earlier, or raise"
            " LAMBDA_DATABASE_HOLD_WARNING_MS.",
            held,
            place,
        )
        self._emit(ConnectionHeld(held))

    def release(self, lease: Lease, error: BaseException | None) -> None:
        """Take a connection back from a block that ended with `error`, and judge that end. Never waits.

        Whatever tears this, the connection has an owner: the lease, until it is handed on.
        """
        connection = lease.connection
        connection.holder = None
        warning = None
        try:
            try:
                connection.take_back(lease.lent)
            except Warning as one:  # of listeners left behind, where warnings are errors
                warning = one
            now = clock.now()
            self._counters.held_ms += elapsed(lease.since, now) * 1000
            if lease.timer is not None:
                lease.timer.cancel()
            lost = connection.is_closed()
            if error is None and not lost:  # what judge() says of these, without asking it each time
                self.gate.succeeded(lease.permit)
            else:
                connection.lost_mid_statement = lost and not server_spoke(error)
                connection.suspected = unfit(error)
                verdict = self._judge(lease, error, lost, now)
                self.gate.report(lease.permit, verdict, now, failure_kind(error), began=lease.since)
            self._hand_on(connection, lost, error, now)
        except BaseException:
            self.workers.reclaim(connection, lease.number)
            raise
        if warning is not None:
            raise warning

    def _hand_on(self, connection: PooledConnection, lost: bool, error: BaseException | None, now: Instant) -> None:
        if connection.closing or self.workers.closed:
            connection.lease = 0  # whoever ends it has it
        elif lost:
            self.workers.retire(connection, ConnectionClosed("lost"))
        elif isinstance(error, (RecursionError, MemoryError)):
            connection.terminate()  # it may have struck inside the driver, whose state is anybody's guess then
            self.workers.retire(connection, ConnectionClosed("unclean"))
        elif connection.resets or error is not None or connection.needs_cleanup:
            # a block that failed may have left a statement running, of which asyncpg does not tell
            self.workers.clean_up(connection, now)
        else:
            self.workers.give_back(connection, now)

    def _return(self, lease: Lease, now: Instant) -> None:
        """Take a connection back that its borrower never saw."""
        lease.connection.take_back(lease.lent)
        self._hand_on(lease.connection, lease.connection.is_closed(), None, now)

    def _judge(self, lease: Lease, error: BaseException | None, lost: bool, now: Instant) -> Verdict:
        if self.closed or lease.connection.closing:
            return Verdict.NEUTRAL  # our own doing
        held = elapsed(lease.since, now)
        return judge(
            error,
            lost=lost and not lease.lent.closed_by_borrower,
            paused=held >= self._idle_timeout,
            held=held,
            command_timeout=self._command_timeout,
            patience=self._patience,
        )

    async def disconnect(self, timeout: float) -> None:
        """End all sessions within `timeout` seconds; whoever waits or comes later gets a new one."""
        await self.workers.disconnect("close", timeout)

    async def close(self, timeout: float, *, reason: str = "close") -> None:
        """End the pool within `timeout` seconds. Borrowers get three quarters of it to finish, then are cut off."""
        self.closed = True
        self.gate.close()
        end = self.loop.time() + timeout
        try:
            await self.workers.wait_returned(timeout * 3 / 4)
        finally:  # also where the caller is cancelled
            await self.workers.close(reason, max(end - self.loop.time(), 0.0))
            await self._remove_loop_end_hook()

    def terminate(self) -> None:
        """End the pool at once, without a goodbye."""
        self.closed = True
        self.gate.close()
        self.workers.terminate("close")
        self._remove_loop_end_hook_now()

    async def loop_ends(self) -> None:
        """Close with the event loop, unless the pool was closed before."""
        if self._loop_end_hook is not None:
            self._loop_end_hook = None
            self._loop_is_ending = True
            # asyncio/base_events.py: shutdown_asyncgens() closes all generators at once, and a user's own may hold a
            # connection, or want one in its last words
            await asyncio.sleep(0)
            await self.workers.wait_returned(_LOOP_CLOSE_TIMEOUT / 2)
            await self.close(_LOOP_CLOSE_TIMEOUT / 2, reason="loop_closed")

    async def _remove_loop_end_hook(self) -> None:
        hook, self._loop_end_hook = self._loop_end_hook, None
        if hook is not None:
            await hook.aclose()

    def _remove_loop_end_hook_now(self) -> None:
        hook, self._loop_end_hook = self._loop_end_hook, None
        if hook is not None:
            # it has nothing to wait for any more, so its end needs no event loop
            with contextlib.suppress(StopIteration):
                hook.aclose().__await__().__next__()

    def abandon(self) -> list[socket]:
        """Let go without the loop, which is closed or is not ours to run; return the sockets that linger."""
        self.closed = True
        self._remove_loop_end_hook_now()
        return self.workers.abandon()

    def disown(self) -> None:
        """In a fork: let go of the parent's sessions, which the parent still uses."""
        self.closed = True
        self._remove_loop_end_hook_now()
        self.workers.disown()


async def _close_with_loop(pool: LoopPool) -> AsyncGenerator[None, None]:
    """End the sessions together with their loop.

    asyncio/runners.py: `Runner.close` runs `loop.shutdown_asyncgens`, and so does every well-behaved owner of a loop:
    that is the one hook a loop has for its end.
    """
    try:
        yield
    finally:
        await pool.loop_ends()

"""The tasks that connect, check, reset and close connections: one module, as each hands its connection to the next.

No borrower does any of that in its own task: it waits for the result. So a cancelled borrower tears nothing, and what
was opened for it goes to the next one. A connection that a worker has is that worker's alone: whoever wants it closed
says so (`closing`), and the worker closes it. Most resets need no worker: the answer itself hands the connection on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from socket import socket
from typing import Any, TypeAlias

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.login import Login
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.connect.sockets import end_if_lost, forget_task, is_due
from asyncdb_guard.events import ConnectionClosed, ConnectionOpened, ConnectionReplaced, Events, GrowthPaused, logger
from asyncdb_guard.pool.connect_attempt import ConnectAttempt
from asyncdb_guard.pool.connections import Connections
from asyncdb_guard.pool.gate import Gate
from asyncdb_guard.pool.health import PING_TIMEOUT, RESET_TIMEOUT, Health, check, health_of, ping_timeout, reset
from asyncdb_guard.pool.lease import Lease
from asyncdb_guard.pool.stats import Counters
from asyncdb_guard.settings import DatabaseSettings

_EAGER: Any = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""Python 3.11 begins a task in the loop's next round."""

_LATE_LOGIN_TIMEOUT_MAX = 10.0
"""Seconds for which the place of a late login stays taken, or five times CONNECT_TIMEOUT, if that is less: a path that
is silently dead looks like a server that is slow to log in."""

_WORKER_GRACE = 0.6
"""Seconds past its timeout after which a worker is overdue; a goodbye and the wait for the server are less."""

ClosingEvent: TypeAlias = ConnectionClosed | ConnectionReplaced


class Workers:
    """Does what `connections` decides, for those who wait at the `gate`; lives as long as its event loop."""

    def __init__(
        self,
        settings: DatabaseSettings,
        connector: Connector,
        connections: Connections,
        gate: Gate,
        events: Events,
        counters: Counters,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect_timeout = settings.connect_timeout
        self._late_login_timeout = min(5 * settings.connect_timeout, _LATE_LOGIN_TIMEOUT_MAX)
        self._idle_timeout = settings.idle_timeout
        self._connector = connector
        self._connections = connections
        self._gate = gate
        self._emit = events.emit
        self._counters = counters
        self._tasks: dict[asyncio.Task[None], tuple[PooledConnection | ConnectAttempt, float]] = {}
        """The workers, each with what it has in hand and when it must be over. A loop alone does not hold its tasks."""
        self._preparing: set[asyncio.Task[None]] = set()
        """Those that may soon have a connection for a waiter."""
        self._reset_sent: dict[PooledConnection, asyncio.Future[Any]] = {}
        """The connections whose usual reset is under way, each with its answer; the one returned first in front."""
        self._resetting: dict[PooledConnection, asyncio.Future[Any] | None] = {}
        """The same, of those that a worker resets; with the answer that it waits for, if a usual reset was sent."""
        self.closed = False
        self._closing_reason = "close"
        self._idle_timer: asyncio.TimerHandle | None = None
        self._reset_timer: asyncio.TimerHandle | None = None
        self._growth_timer: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event | None = None
        """Set whenever a connection comes back or ends, if somebody waits for that."""

    # -- what borrowers start ----------------------------------------------------------------------------------------

    def serve_waiters(self) -> None:
        """Start as many workers as there are waiters, as far as `connections` allows it."""
        connections = self._connections
        while not self.closed and len(self._preparing) + len(self._reset_sent) < self._gate.waiting:
            if connections.idle:
                self._check(connections.idle[-1])
            # mostly there is no vacancy, and then nobody needs to know the time
            elif connections.vacant and connections.may_connect(now := clock.now()):
                self._connect(now)
            else:
                return

    def give_back(self, connection: PooledConnection, now: Instant) -> None:
        """Take a clean connection back, used until now."""
        connection.idle_since = now
        if self._gate.waiting:
            self._hand_on(connection, now)
        else:
            self._keep(connection)

    def clean_up(self, connection: PooledConnection, now: Instant) -> None:
        """Reset a connection that its borrower has left just now. Only the next borrower waits for that."""
        connection.idle_since = now
        self._connections.put_to_work(connection)
        # at once, so that the reset is sent even if the event loop stops or is blocked after this block
        answer = connection.send_reset()
        if answer is None:
            self._reset(connection, **_EAGER)
            return
        # a task and a timer for each would cost as much as all else in a release
        answer.add_done_callback(partial(self._reset_answered, connection))
        self._reset_sent[connection] = answer
        if self._reset_timer is None:
            self._reset_timer = self._loop.call_later(RESET_TIMEOUT, self._time_out_resets)

    def retire(self, connection: PooledConnection, event: ClosingEvent, timeout: float = PING_TIMEOUT) -> None:
        """End a session that cannot be lent again; its place is vacant once the server has let go."""
        connection.closing = True
        self._connections.put_to_work(connection)
        self._start(self._close_it(connection, event, timeout), connection, timeout)

    def give_up_stale(self, now: Instant) -> None:
        """Let nobody wait for an answer that was due before the process was frozen."""
        self._gate.cancel_stale(now, self._late_login_timeout)
        self._end_late_resets(now)
        for connection, answer in self._resetting.items():
            if elapsed(connection.idle_since, now) < RESET_TIMEOUT:
                return  # nor is any later one's
            if answer is None and not connection.readable():
                connection.terminate()

    # -- the workers -------------------------------------------------------------------------------------------------

    def _check(self, connection: PooledConnection) -> None:
        self._connections.put_to_work(connection)
        self._preparing.add(self._start(self._check_it(connection), connection, PING_TIMEOUT))

    def _reset(self, connection: PooledConnection, answer: asyncio.Future[Any] | None = None, **options: Any) -> None:
        work = self._reset_it(connection, answer)
        self._preparing.add(self._start(work, connection, RESET_TIMEOUT, **options))

    def _connect(self, now: Instant) -> None:
        attempt = self._gate.begin_connect(now, alone=not self._connections.all)
        self._connections.connecting.add(attempt)
        timeout = self._connect_timeout + self._late_login_timeout
        try:
            attempt.task = self._start(self._connect_it(attempt), attempt, timeout)
        except BaseException:
            self._end_connect(attempt)
            raise
        self._preparing.add(attempt.task)

    def _start(
        self,
        work: Coroutine[None, None, None],
        in_hand: PooledConnection | ConnectAttempt,
        timeout: float,
        **options: Any,
    ) -> asyncio.Task[None]:
        try:
            task = asyncio.Task(work, loop=self._loop, **options)
        except BaseException:  # at the limit of the stack, say
            work.close()
            raise
        self._tasks[task] = in_hand, self._loop.time() + timeout + _WORKER_GRACE
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if task not in self._tasks:
            return  # `reclaim_all` was first
        in_hand, _ = self._tasks.pop(task)
        self._preparing.discard(task)
        if isinstance(in_hand, ConnectAttempt):
            self._end_connect(in_hand)  # again, for one that was cancelled before it began
        elif task.cancelled() or task.exception() is not None:
            self._take_over(in_hand)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "A worker of the pool failed", "exception": error, "task": task}
            )
        if self._gate.waiting:
            self.serve_waiters()

    def _take_over(self, connection: PooledConnection) -> None:
        """A worker was cut short, as asyncio.run() does in its end: its connection has no other owner."""
        if connection not in self._connections.at_work:
            return
        if connection.closing:
            connection.terminate()
            self._vacate(connection, ConnectionClosed("lost"))
        else:
            self.retire(connection, ConnectionClosed("lost"))

    def reclaim(self, connection: PooledConnection, lease: int) -> None:
        """Take over a connection whose lease was forgotten. Safe from any thread and at any depth of the stack."""
        if not self.closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed; RecursionError is one, too
                self._loop.call_soon_threadsafe(self._retire_unowned, connection, lease)

    def _retire_unowned(self, connection: PooledConnection, lease: int) -> None:
        if connection in self._connections.lent and connection.lease == lease:
            connection.lease = 0
            logger.warning(
                "A connection was borrowed, and forgotten without a release. It is closed, and its place is free again."
                " Use `async with pool.acquire()`, or release() in a `finally`."
            )
        self.reclaim_all()

    def reclaim_all(self) -> None:
        """Find connections and places that nobody owns, after an exception from outside tore a step of ours in two."""
        if self.closed:
            return
        connections = self._connections
        now = self._loop.time()
        for task, (held, end) in self._tasks.items():
            if now > end and not task.done():
                # it stays the owner, as it may be about to run: a frozen process makes every worker overdue
                self._tasks[task] = held, now + self._late_login_timeout + _WORKER_GRACE
                if not is_due(task):
                    task.cancel()
                end_if_lost(task)
        for task in [task for task in self._tasks if task.done()]:
            self._done(task)  # its callback was torn, or is about to run
        self._end_late_resets(clock.now())
        in_hand = {*(in_hand for in_hand, _ in self._tasks.values()), *self._reset_sent}
        self._gate.keep_connects(in_hand)
        self._preparing &= self._tasks.keys()
        connections.connecting &= in_hand
        connections.leaving &= in_hand
        connections.lent.difference_update(connections.idle, connections.at_work)
        for connection in [one for one in connections.lent if not one.lease]:
            self.retire(connection, ConnectionClosed("unclean"))
        for connection in connections.at_work - in_hand:
            connection.terminate()  # what was torn may be the driver
            self.retire(connection, ConnectionClosed("unclean"))

    async def _connect_it(self, attempt: ConnectAttempt) -> None:
        """Open one connection, if somebody still waits for it."""
        if self._gate.first is None:
            return
        end = self._loop.time() + self._connect_timeout
        login = self._connector.log_in()
        connection = None
        try:
            connection = await self._connector.adopt(await login.result(self._connect_timeout))
            if self._connector.initializes:
                attempt.alone = False  # the server answers
                await self._connector.initialize(connection, end - self._loop.time())
        except Exception as error:
            self._counters.connect_failures += 1
            attempt.late = True
            self._connect_failed(attempt, error)
            await self._end_login(attempt, login, connection)
            return
        except asyncio.CancelledError:
            attempt.late = True
            self._connections.give_up(attempt)
            await self._end_login(attempt, login, connection)
            raise
        except GeneratorExit:  # it had lost its wake-up
            login.abandon()
            raise
        self._connections.connected(attempt, connection)
        self._end_connect(attempt)
        self._gate.connect_succeeded()
        now = clock.now()
        took = elapsed(attempt.since, now)
        self._counters.connects += 1
        self._counters.connect_ms += took * 1000
        self._emit(ConnectionOpened(took))
        self._lend_or_keep(connection)

    async def _end_login(self, attempt: ConnectAttempt, login: Login, connection: PooledConnection | None) -> None:
        """Keep the place of a login that failed or was given up until the server has let go of it.

        `connection`: where the login itself went well.
        """
        self._preparing.discard(attempt.task)
        if connection is None:
            await login.end(0.0 if self.closed else self._late_login_timeout)
        else:
            connection.lost_mid_statement = connection.is_closed()
            await connection.close(0.0 if self.closed else PING_TIMEOUT)

    def _connect_failed(self, attempt: ConnectAttempt, error: Exception) -> None:
        self._connections.give_up(attempt)
        promising = self._connections.promising
        self._gate.connect_failed(attempt, error, promising=promising)
        if promising:
            pause = self._connections.pause_growth(clock.now())
            self._emit(GrowthPaused(pause))
            if self._growth_timer is not None:
                self._growth_timer.cancel()
            self._growth_timer = self._loop.call_later(pause, self.serve_waiters)

    def _end_connect(self, attempt: ConnectAttempt) -> None:
        self._gate.end_connect(attempt)
        self._connections.let_go(attempt)
        self._notify()

    async def _check_it(self, connection: PooledConnection) -> None:
        """Find out whether an idle connection still works; close it if not, and a new one takes its place."""
        first = self._gate.first
        timeout = ping_timeout(first.deadline - self._loop.time() if first is not None else self._connect_timeout)
        reason = await check(connection, health_of(connection, self._idle_timeout, clock.now()), timeout)
        if reason is None:
            connection.idle_since = clock.now()
            self._lend_or_keep(connection)
            return
        if reason == "unresponsive":
            # the others have rested longer, on the same path: one ping after the other would use up the time
            for other in tuple(self._connections.idle):
                self.retire(other, ConnectionClosed(reason), timeout)
        self.retire(connection, ConnectionReplaced(reason), timeout)

    def _reset_answered(self, connection: PooledConnection, answer: asyncio.Future[Any]) -> None:
        """The answer to a usual reset is here: hand the connection on. If it is an error, a worker goes on with it."""
        failed = answer.cancelled() or answer.exception() is not None
        if self._reset_sent.get(connection) is not answer:
            return  # it was late: given up, or left to a worker
        del self._reset_sent[connection]
        if failed:
            self._reset(connection, answer)
        else:
            self._hand_on(connection, clock.now())
        if self._gate.waiting:
            self.serve_waiters()

    def _time_out_resets(self) -> None:
        self._reset_timer = None
        now = clock.now()
        try:
            self._end_late_resets(now)
        finally:  # also where an exception from a signal handler comes in between
            first = next(iter(self._reset_sent), None)
            if first is not None:
                rest = max(RESET_TIMEOUT - elapsed(first.idle_since, now), 0.0)
                self._reset_timer = self._loop.call_later(rest, self._time_out_resets)

    def _end_late_resets(self, now: Instant) -> None:
        late: list[tuple[PooledConnection, asyncio.Future[Any]]] = []
        for connection, answer in self._reset_sent.items():
            if elapsed(connection.idle_since, now) < RESET_TIMEOUT:
                break  # nor is any later one late
            late.append((connection, answer))
        if late and self._reset_timer is not None:
            # an exception from a signal handler may have torn the timer, which then never starts again by itself
            self._reset_timer.cancel()
            self._reset_timer = self._loop.call_later(0.0, self._time_out_resets)
        for connection, answer in late:
            arrives = answer.done() or connection.readable()
            del self._reset_sent[connection]
            if arrives:
                # a worker waits for the rest: this may be a part of the answer, or, without poll(2), nothing at all
                self._reset(connection, answer)
            else:
                connection.terminate()
                self._retire_after_reset(connection, "unresponsive")

    async def _reset_it(self, connection: PooledConnection, answer: asyncio.Future[Any] | None) -> None:
        """Reset a connection that needs more than the usual reset, or whose answer is late or an error."""
        self._resetting[connection] = answer
        try:
            reason = await reset(connection, answer)
        finally:
            del self._resetting[connection]
            self._notify()
        if reason is None:
            self._hand_on(connection, clock.now())
        else:
            self._retire_after_reset(connection, reason)

    def _retire_after_reset(self, connection: PooledConnection, reason: str) -> None:
        replaced = self._gate.waiting and reason != "unclean"
        self.retire(connection, ConnectionReplaced(reason) if replaced else ConnectionClosed(reason))

    async def _close_it(self, connection: PooledConnection, event: ClosingEvent, timeout: float) -> None:
        await connection.close(timeout)
        self._vacate(connection, event)

    def _hand_on(self, connection: PooledConnection, now: Instant) -> None:
        """A connection is clean again: look at it before somebody who waits gets it.

        Also after a reset: its answer may have lain in the socket while the process was frozen, and the end behind it.
        """
        if self._gate.waiting and health_of(connection, self._idle_timeout, now) is not Health.GOOD:
            self._check(connection)
        else:
            self._lend_or_keep(connection)

    def _lend_or_keep(self, connection: PooledConnection) -> None:
        if connection.closing:
            self.retire(connection, ConnectionClosed(self._closing_reason))
        elif (waiter := self._gate.take_first()) is not None:
            self._connections.lend(connection)
            waiter.future.set_result(Lease(connection, waiter.permit, waiter.since, self.reclaim))
        else:
            self._keep(connection)

    def _keep(self, connection: PooledConnection) -> None:
        self._connections.rest(connection)
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(self._idle_timeout, self._close_expired)
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()

    def _vacate(self, connection: PooledConnection, event: ClosingEvent) -> None:
        if not self._connections.remove(connection):
            return
        if isinstance(event, ConnectionReplaced):
            self._counters.replaced += 1
        else:
            self._counters.closed += 1
        self._emit(event)
        self._notify()

    def _close_expired(self) -> None:
        self._idle_timer = None
        now = clock.now()
        for connection in self._connections.expired(now):
            self.retire(connection, ConnectionClosed("idle_timeout"))
        rest = self._connections.next_expiry(now)
        if rest is not None:
            self._idle_timer = self._loop.call_later(rest, self._close_expired)

    @property
    def interrupted(self) -> bool:
        """Whether the server may still run a statement that was broken off."""
        return any(connection.interrupted for connection in self._resetting)

    async def settle(self, timeout: float) -> None:
        """Wait until no broken-off statement runs any more, for at most `timeout` seconds."""
        await self._wait(lambda: not self.interrupted, timeout)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def wait_returned(self, timeout: float) -> None:
        """Wait until nobody waits for a connection or has one that is to be returned, for at most `timeout` seconds."""
        connections = self._connections

        def returned() -> bool:
            return not self._gate.waiting and all(one.closing for one in (*connections.lent, *connections.at_work))

        await self._wait(returned, timeout)

    async def disconnect(self, reason: str, timeout: float) -> None:
        """End all sessions within `timeout` seconds, running statements included; later borrowers get new ones."""
        end = self._loop.time() + timeout
        connections = self._connections
        ending = set(connections.all)
        self._closing_reason = reason
        for connection in (*connections.idle, *connections.lent):
            self.retire(connection, ConnectionClosed(reason), timeout)
        for connection in connections.at_work:
            connection.closing = True  # its worker closes it
        await self._wait(
            lambda: ending.isdisjoint(connections.at_work) and not (connections.connecting or connections.leaving),
            timeout,
        )
        for connection in tuple(connections.idle):  # a connect was in progress, and nobody wanted it any more
            self.retire(connection, ConnectionClosed(reason))
        await self._wait(lambda: not connections.at_work, end - self._loop.time())

    async def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        try:
            async with asyncio.timeout(max(timeout, 0)):
                while not condition():
                    self._changed = asyncio.Event()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def close(self, reason: str, timeout: float) -> None:
        """Begin nothing new, and end all sessions within `timeout` seconds, running statements included."""
        self.closed = True
        try:
            await self.disconnect(reason, timeout)
        finally:
            self.terminate(reason)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PING_TIMEOUT)

    def terminate(self, reason: str) -> None:
        """End all sessions at once, without a goodbye."""
        self._stop()
        for task in self._tasks:
            task.cancel()
            end_if_lost(task)
        for connection in self._connections.all:
            connection.closing = True
            self._connections.put_to_work(connection)
            connection.terminate()
            self._vacate(connection, ConnectionClosed(reason))
        self._reset_sent.clear()
        self._connector.terminate()

    def _stop(self) -> None:
        self.closed = True
        for timer in (self._idle_timer, self._growth_timer, self._reset_timer):
            if timer is not None:
                timer.cancel()

    def abandon(self) -> list[socket]:
        """End every session without the event loop; return the sockets that linger."""
        self._stop()
        for task in self._tasks:
            forget_task(task)
        lingering = [connection.abandon() for connection in self._connections.all]
        self._forget_resets()
        return [one for one in lingering if one is not None]

    def disown(self) -> None:
        """In a fork: leave every session to the process that opened it."""
        self._stop()
        for connection in self._connections.all:
            connection.disown()
        self._forget_resets()

    def _forget_resets(self) -> None:
        for answer in self._reset_sent.values():
            if answer.done():
                answer.exception()  # asyncio would log that nobody has asked for it
        self._reset_sent.clear()

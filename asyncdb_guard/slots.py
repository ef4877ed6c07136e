"""The places for sessions: `pool_max` of them, each vacant, being prepared, idle or lent.

Nobody opens, pings or closes a session in a borrower's own task: a task of the slot does, and a borrower merely waits
for what comes of it. So a cancelled borrower tears nothing, and what was opened for it goes to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from socket import socket

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.diagnosis import connect_error
from asyncdb_guard.driver import Driver
from asyncdb_guard.session import Session
from asyncdb_guard.errors import GuardError
from asyncdb_guard.events import ConnectionClosed, ConnectionOpened, ConnectionReplaced, Events
from asyncdb_guard.judgement import Verdict, judge_connect
from asyncdb_guard.liveness import PING_TIMEOUT, Health, assess, ping_bound
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.stats import Counters
from asyncdb_guard.waiting import WaitQueue


class Dial:
    """A connect in progress. It fails one caller only, however many wait behind it."""

    __slots__ = ("_task", "given_up", "since")

    def __init__(self, task: asyncio.Task[None], since: Instant) -> None:
        self._task = task
        self.since = since
        self.given_up = False

    def give_up(self) -> None:
        """End it; the next caller gets a connect of its own."""
        self.given_up = True
        self._task.cancel()


class Slots:
    """Keeps at most `pool_max` sessions and serves the queue with them; lives as long as its event loop.

    `report(permit, verdict, instant)` is called when a connect failed for the caller with that permit.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        driver: Driver,
        queue: WaitQueue,
        events: Events,
        counters: Counters,
        report: Callable[[int, Verdict, Instant], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect_timeout = settings.connect_timeout
        self._command_timeout = settings.command_timeout
        self._idle_timeout = settings.idle_timeout
        self._resets = settings.reset_sessions
        self._pool_max = settings.pool_max
        self._driver = driver
        self._queue = queue
        self._emit = events.emit
        self._counters = counters
        self._report = report
        self._sessions: set[Session] = set()
        self.idle: list[Session] = []
        self.lent: set[Session] = set()
        self._vacant = settings.pool_max
        self._dials: list[Dial] = []
        self._preparing = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._shut = False
        self.returned = asyncio.Event()
        """Set whenever a session came back or ended."""

    @property
    def dial(self) -> Dial | None:
        """The oldest connect in progress that nobody has given up."""
        return next((dial for dial in self._dials if not dial.given_up), None)

    def take(self, now: Instant) -> Session | None:
        """The hot path: a session in good health, if one is idle and nobody waits. No task, no await."""
        if not self.idle or self._queue or self._assess(self.idle[-1], now) is not Health.GOOD:
            return None
        session = self.idle.pop()
        self.lent.add(session)
        return session

    def give_back(self, session: Session) -> None:
        """Take a clean session back and pass it on to whoever has waited longest."""
        if session not in self._sessions:
            return  # ended meanwhile
        if session.closed:
            self._discard(session, "lost")
        elif self._queue.serve(session):
            self.lent.add(session)
        else:
            self.lent.discard(session)
            session.idle_since = clock.now()
            self.idle.append(session)
            if self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self._idle_timeout, self._sweep)
        self.returned.set()

    def must_tidy(self, session: Session) -> bool:
        """Whether a session that its borrower left behind needs a round trip before it can be given back."""
        return not session.closed and (self._resets or session.unsettled)

    def tidy(self, session: Session) -> asyncio.Task[None]:
        """Begin to make a session fit for the next borrower, in a task that no cancellation of this one reaches."""
        return self._spawn(self._tidy(session))

    async def _tidy(self, session: Session) -> None:
        try:
            if self._resets:
                await session.reset(self._command_timeout)
            elif not await session.settle(self._command_timeout):
                # an open transaction: without asyncpg's reset query the safe way is a new session
                await session.close(PING_TIMEOUT)
        except asyncio.CancelledError:
            self._discard(session, "unclean")
            raise
        except Exception as error:
            self._discard(session, "unresponsive" if isinstance(error, TimeoutError) else "unclean")
        else:
            self.give_back(session)

    def work(self) -> None:
        """Put as many slots to work as callers wait for."""
        while not self._shut and self._preparing < len(self._queue):
            if self.idle:
                self._prepare(self._revive(self.idle.pop()))
                continue
            places = self._pool_max if self._driver.opens_all else 1
            if self._vacant < places:
                return
            self._vacant -= places
            self._prepare(self._dial(places))

    def _prepare(self, work: Coroutine[None, None, None]) -> None:
        self._preparing += 1
        self._spawn(work).add_done_callback(self._prepared)

    def _prepared(self, _: asyncio.Task[None]) -> None:
        self._preparing -= 1
        self.work()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _assess(self, session: Session, now: Instant) -> Health:
        return assess(
            closed=session.closed,
            readable=session.readable(),
            idle=elapsed(session.idle_since, now),
            idle_timeout=self._idle_timeout,
            age=elapsed(session.opened_at, now),
            lifetime=session.lifetime,
        )

    async def _revive(self, session: Session) -> None:
        """Find out whether an idle session still works; put a new one in its place if not."""
        health = self._assess(session, clock.now())
        head = self._queue.head
        bound = ping_bound(head.deadline - self._loop.time() if head is not None else self._connect_timeout)
        reason = health.value
        try:
            if health is Health.SUSPECT:
                await session.ping(bound)
            elif health is not Health.GOOD:
                await session.close(bound)
        except asyncio.CancelledError:
            self._discard(session, "unclean")
            raise
        except Exception as error:
            reason = "unresponsive" if isinstance(error, TimeoutError) else "lost"
            session.terminate()
        if not session.closed:
            self.give_back(session)
            return
        self._sessions.discard(session)
        self._counters.replaced += 1
        self._emit(ConnectionReplaced(reason))
        await self._dial(1)

    async def _dial(self, places: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        dial = Dial(task, clock.now())
        self._dials.append(dial)
        try:
            async with asyncio.timeout(self._connect_timeout):
                sessions = await self._driver.open()
        except asyncio.CancelledError:
            self._vacant += places
            raise
        except Exception as error:
            self._vacant += places
            self._counters.connect_failures += 1
            self._fail_head(error)
        else:
            seconds = elapsed(dial.since, clock.now())
            for session in sessions:
                self._sessions.add(session)
                self._counters.connects += 1
                self._emit(ConnectionOpened(seconds))
                self.give_back(session)
        finally:
            self._dials.remove(dial)

    def _fail_head(self, cause: Exception) -> None:
        """A connect failed: the affair of whoever has waited longest. The others get a connect of their own."""
        waiter = next(self._queue.drain(), None)
        if waiter is not None:
            waiter.future.set_exception(cause if isinstance(cause, GuardError) else connect_error(cause))
            self._report(waiter.permit, judge_connect(cause, renewed=self._driver.renews_login), clock.now())

    def _sweep(self) -> None:
        """End every session that has been idle for long enough, and come back for the next."""
        self._idle_timer = None
        now = clock.now()
        # a timer may fire within one tick of the clock before its time
        due = [session for session in self.idle if elapsed(session.idle_since, now) >= self._idle_timeout - 0.001]
        for session in due:
            self.idle.remove(session)
            self._spawn(self._retire(session, "idle_timeout", PING_TIMEOUT))
        if self.idle:
            youth = self._idle_timeout - max(elapsed(session.idle_since, now) for session in self.idle)
            self._idle_timer = self._loop.call_later(youth, self._sweep)

    async def _retire(self, session: Session, reason: str, bound: float) -> None:
        try:
            await session.close(bound)
        finally:
            self._discard(session, reason)

    async def end(self, reason: str, bound: float) -> None:
        """Begin nothing new; stop every connect, and end every session within `bound` seconds, statements included."""
        self._stop()
        for task in self._tasks:
            task.cancel()
        self.idle.clear()
        for session in self._sessions:
            self._spawn(self._retire(session, reason, bound))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=bound + PING_TIMEOUT)
        self._driver.terminate()

    def abandon(self) -> list[socket]:
        """End every session without the event loop; return what remains of them."""
        self._stop()
        return [leaving for session in self._sessions if (leaving := session.abandon()) is not None]

    def disown(self) -> None:
        """Leave every session to the process that opened it."""
        self._shut = True
        for session in self._sessions:
            session.disown()

    def _stop(self) -> None:
        self._shut = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    def _discard(self, session: Session, reason: str) -> None:
        """Hang up a session that can't be lent again, and free its place."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        self.lent.discard(session)
        session.terminate()
        self._vacant += 1
        self._counters.closed += 1
        self._emit(ConnectionClosed(reason))
        self.returned.set()
        self.work()

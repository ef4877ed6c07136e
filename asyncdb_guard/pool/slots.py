"""The places for sessions: `pool_max` of them, each vacant, being prepared, idle, lent or ending.

Nobody opens, checks or ends a session in a borrower's own task: a task of the slot does, and a borrower merely waits
for what comes of it. So a cancelled borrower tears nothing, and what was opened for it goes to the next. Only the
tidying after a block that went well is the borrower's, since a task costs a good part of its round trip. A place is
vacant again only when the server has let go of the session that had it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from socket import socket
from typing import TypeAlias

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.session import Session
from asyncdb_guard.events import ConnectionClosed, ConnectionReplaced, Events
from asyncdb_guard.liveness import PING_TIMEOUT, Health, ping_bound
from asyncdb_guard.pool.crew import Crew
from asyncdb_guard.pool.dials import Dials
from asyncdb_guard.pool.shelf import Shelf
from asyncdb_guard.pool.stats import Counters
from asyncdb_guard.pool.upkeep import check, health_of, make_fit
from asyncdb_guard.pool.waiting import WaitQueue
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.verdict import Verdict

Farewell: TypeAlias = ConnectionClosed | ConnectionReplaced


class Slots:
    """Keeps at most `pool_max` sessions and serves the queue with them; lives as long as its event loop.

    `report(permit, verdict, instant)` is called when a connect failed under that permit.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        driver: Connector,
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
        self._driver = driver
        self._queue = queue
        self._emit = events.emit
        self._counters = counters
        self._sessions: set[Session] = set()
        self.idle = Shelf(settings.idle_timeout, self._expire)
        self.lent: set[Session] = set()
        self.dials = Dials(driver, queue, counters, events.emit, report)
        self._vacant = settings.pool_max
        self._preparing = 0
        self._crew = Crew()
        self._shut = False
        self._returned: asyncio.Event | None = None

    def take(self, now: Instant) -> Session | None:
        """The hot path: a session in good health, if one is idle and nobody waits. No task, no await."""
        if not self.idle or self._queue or health_of(self.idle[-1], self._idle_timeout, now) is not Health.GOOD:
            return None
        session = self.idle.pop()
        self.lent.add(session)
        return session

    def give_back(self, session: Session, now: Instant) -> None:
        """Take a clean session back and pass it on to whoever has waited longest."""
        if session.ending:
            return
        session.idle_since = now
        if self._queue and health_of(session, self._idle_timeout, now) is not Health.GOOD:
            self.lent.discard(session)
            self._prepare(self._revive(session))
        else:
            self._offer(session)
        if self._returned is not None:
            self._returned.set()

    def _offer(self, session: Session) -> None:
        if self._queue and self._queue.serve(session):
            self.lent.add(session)
        else:
            self.lent.discard(session)
            self.idle.put(session)

    def lose(self, session: Session) -> None:
        """A session is over that its borrower leaves behind."""
        if not self._shut:
            self._crew.start(self._retire(session, ConnectionClosed("lost")))

    def must_tidy(self, session: Session) -> bool:
        """Whether a session that its borrower left behind needs a round trip before it can be given back."""
        return self._resets or session.unsettled

    async def tidy(self, session: Session) -> None:
        """Make a session fit for the next borrower. Where a cancellation tears that, a task of its own begins anew."""
        try:
            reason = await make_fit(session, reset=self._resets, timeout=self._command_timeout)
        except asyncio.CancelledError:
            if not self._shut:
                self.tidy_apart(session)
            raise
        if reason is None:
            self.give_back(session, clock.now())
        else:
            await asyncio.wait({self._crew.start(self._retire(session, ConnectionClosed(reason)))})

    def tidy_apart(self, session: Session) -> asyncio.Task[None]:
        """The same, in a task that no cancellation of this one reaches."""
        return self._crew.start(self.tidy(session))

    def work(self) -> None:
        """Put as many slots to work as callers wait for."""
        while not self._shut and self._preparing < len(self._queue):
            if self.idle:
                self._prepare(self._revive(self.idle.pop()))
            elif self._vacant >= self._driver.next_batch:
                self._vacant -= self._driver.next_batch
                self._prepare(self._dial(self._driver.next_batch))
            else:
                return

    def _prepare(self, work: Coroutine[None, None, None]) -> None:
        self._preparing += 1
        self._crew.start(work).add_done_callback(self._prepared)

    def _prepared(self, _: asyncio.Task[None]) -> None:
        self._preparing -= 1
        self.work()

    async def _revive(self, session: Session) -> None:
        """Find out whether an idle session still works; put a new one in its place if not."""
        head = self._queue.head
        bound = ping_bound(head.deadline - self._loop.time() if head is not None else self._connect_timeout)
        reason = await check(session, health_of(session, self._idle_timeout, clock.now()), bound)
        if reason is None and not session.ending:
            session.idle_since = clock.now()
            self._offer(session)
            return
        if reason == "unresponsive":
            # those below it have rested for longer, on the same path: one after the other they'd eat up the time
            self._retire_all(self.idle, reason, bound)
        await self._retire(session, ConnectionReplaced(reason or "lost"), bound)

    async def _dial(self, places: int) -> None:
        """Fill vacated places with new sessions, if somebody still asks for one."""
        sessions: list[Session] = []
        try:
            if self._queue.head is not None:
                sessions = await self.dials.open()
        finally:
            self._vacant += places - len(sessions)
        self._sessions.update(sessions)
        for session in sessions:
            self._offer(session)

    def _expire(self, session: Session) -> None:
        self._crew.start(self._retire(session, ConnectionClosed("idle_timeout")))

    async def _retire(self, session: Session, event: Farewell, bound: float = PING_TIMEOUT) -> None:
        """End a session that can't be lent again; its place is free once the server has let go."""
        if not session.ending:
            session.ending = True
            await self._end_session(session, event, bound)

    def _retire_all(self, sessions: Iterable[Session], reason: str, bound: float = PING_TIMEOUT) -> None:
        """The same for many, idle ones among them, in tasks of their own; none of them is lent from now on."""
        ending = [session for session in sessions if not session.ending]
        self.idle.clear()
        for session in ending:
            session.ending = True
        for session in ending:
            self._crew.start(self._end_session(session, ConnectionClosed(reason), bound))

    async def _end_session(self, session: Session, event: Farewell, bound: float) -> None:
        try:
            await session.close(bound)
        finally:
            self._vacate(session, event)
            self.work()

    def _vacate(self, session: Session, event: Farewell) -> None:
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        self.lent.discard(session)
        self._vacant += 1
        if isinstance(event, ConnectionReplaced):
            self._counters.replaced += 1
        else:
            self._counters.closed += 1
        self._emit(event)
        if self._returned is not None:
            self._returned.set()

    async def nobody_borrows(self, timeout: float) -> None:
        """Wait until every borrower has given its session back, for at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.lent:
                    self._returned = asyncio.Event()
                    await self._returned.wait()

    async def drop(self, reason: str, bound: float) -> None:
        """End all sessions within `bound` seconds, running statements included; those who ask later get new ones."""
        end = self._loop.time() + bound
        self._retire_all(self._sessions, reason, bound)
        await self._crew.finish(bound)
        self._retire_all(self.idle, reason)  # a connect was in progress, and nobody wanted it any more
        await self._crew.finish(end - self._loop.time())

    async def end(self, reason: str, bound: float) -> None:
        """Begin nothing new, and end all sessions within `bound` seconds, running statements included."""
        self._shut = True
        try:
            await self.drop(reason, bound)
        finally:
            self._crew.cancel()
            self.idle.clear()
            for session in tuple(self._sessions):
                session.terminate()
                self._vacate(session, ConnectionClosed(reason))
            self._driver.terminate()
        await self._crew.finish(PING_TIMEOUT)

    def abandon(self) -> list[socket]:
        """End every session without the event loop; return what remains of them."""
        self._shut = True
        self.idle.clear()
        return [leaving for session in self._sessions if (leaving := session.abandon()) is not None]

    def disown(self) -> None:
        """Leave every session to the process that opened it."""
        self._shut = True
        for session in self._sessions:
            session.disown()

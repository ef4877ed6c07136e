"""Connects in progress: who waits for one, who is told that it failed, and how long it goes on for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.connect.session import Session
from asyncdb_guard.errors import GuardError
from asyncdb_guard.events import ConnectionOpened, Event
from asyncdb_guard.pool.stats import Counters
from asyncdb_guard.pool.waiting import WaitQueue
from asyncdb_guard.verdict import Verdict, judge_connect

_FOR_NOBODY = 0.25
"""Seconds for which a connect goes on after the last caller that waited for it has left: a healthy one is through by
then, and one that hangs must not hold up whoever comes next."""


class Dial:
    """A connect by the current task. It fails one caller only, however many wait for it."""

    __slots__ = ("blamed", "since", "task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.since: Instant = clock.now()
        self.blamed = False
        """Whether a caller whose time was up has reported it already."""


class Dials:
    """Opens sessions for the queue; `report(permit, verdict, instant)` hears of a connect that failed a caller."""

    def __init__(
        self,
        driver: Connector,
        queue: WaitQueue,
        counters: Counters,
        emit: Callable[[Event], None],
        report: Callable[[int, Verdict, Instant], None],
    ) -> None:
        self._driver = driver
        self._queue = queue
        self._counters = counters
        self._emit = emit
        self._report = report
        self._dials: list[Dial] = []

    @property
    def oldest(self) -> Dial | None:
        """The one that has lasted longest."""
        return next(iter(self._dials), None)

    async def open(self) -> list[Session]:
        """Open as many sessions as the driver opens at once, or none if that fails."""
        dial = Dial()
        self._dials.append(dial)
        try:
            sessions = await self._driver.open()
        except Exception as error:
            self._counters.connect_failures += 1
            if not dial.blamed:
                self._fail_one(error)
            return []
        finally:
            self._dials.remove(dial)
        for _ in sessions:
            self._counters.connects += 1
            self._emit(ConnectionOpened(elapsed(dial.since, clock.now())))
        return sessions

    def _fail_one(self, cause: Exception) -> None:
        """A connect failed: the affair of whoever has waited longest. The others get a connect of their own.

        Where nobody waits any more, nobody saw it fail: those who left had not waited for long enough to tell.
        """
        waiter = next(self._queue.drain(), None)
        if waiter is None:
            return
        renewed = self._driver.renews_login
        waiter.future.set_exception(cause if isinstance(cause, GuardError) else connect_error(cause, renewed=renewed))
        self._report(waiter.permit, judge_connect(cause, renewed=renewed), clock.now())

    def nobody_waits(self) -> None:
        """The last caller has left the queue: give up soon what still hangs."""
        for dial in self._dials:
            asyncio.get_running_loop().call_later(_FOR_NOBODY, self._give_up, dial)

    def _give_up(self, dial: Dial) -> None:
        if dial in self._dials:
            dial.task.cancel()

    def cancel(self) -> None:
        """End them all: nothing shall dial behind an open circuit."""
        for dial in self._dials:
            dial.task.cancel()

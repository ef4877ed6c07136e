"""The queue of borrowers: first come, first served, each with a time and a permit of its own."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.clock import Instant
from asyncdb_guard.connect.session import Session
from asyncdb_guard.errors import CircuitOpenError


class Waiter:
    """A borrower in the queue; lives until it has a session or an error."""

    __slots__ = ("deadline", "future", "permit", "since")

    def __init__(self, future: asyncio.Future[Session], permit: int, since: Instant, deadline: float) -> None:
        self.future = future
        self.permit = permit
        self.since = since
        self.deadline = deadline
        """On the event loop's own clock."""


class WaitQueue(OrderedDict[Waiter, None]):
    """Borrowers in the order in which they came; joining, leaving and serving cost the same at any length."""

    __slots__ = ()

    @property
    def head(self) -> Waiter | None:
        """Whoever has waited longest, and still waits."""
        return next((waiter for waiter in self if not waiter.future.done()), None)

    def join(self, waiter: Waiter) -> None:
        self[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        self.pop(waiter, None)

    def drain(self) -> Iterator[Waiter]:
        """Take waiters out, the oldest first, without those whose task was cancelled but has not run yet."""
        while self:
            waiter, _ = self.popitem(last=False)
            if not waiter.future.done():
                yield waiter

    def serve(self, session: Session) -> bool:
        """Give the session to whoever has waited longest; say whether there was somebody."""
        for waiter in self.drain():
            waiter.future.set_result(session)
            return True
        return False

    def refuse(self, breaker: CircuitBreaker, now: Instant) -> None:
        """The circuit has opened: ask it again for everybody."""
        for waiter in self.drain():
            try:
                breaker.admit(now)
            except CircuitOpenError as error:
                waiter.future.set_exception(error)

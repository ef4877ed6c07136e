"""The idle sessions, the freshest on top, and the timer that ends those which nobody has used for long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncdb_guard import clock
from asyncdb_guard.clock import elapsed
from asyncdb_guard.connect.session import Session

_TICK = 0.001
"""Seconds by which a timer may fire before its time."""


class Shelf(list[Session]):
    """Idle sessions; hands each to `expire` after `timeout` seconds. Lives as long as its event loop."""

    __slots__ = ("_expire", "_loop", "_timeout", "_timer")

    def __init__(self, timeout: float, expire: Callable[[Session], object]) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None

    def put(self, session: Session) -> None:
        """Keep a session that was used until now, on top."""
        self.append(session)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._sweep)

    def clear(self) -> None:
        """Forget all sessions."""
        super().clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = clock.now()
        # the larger of two clocks can put a later one first: look at all
        for session in [one for one in self if elapsed(one.idle_since, now) >= self._timeout - _TICK]:
            self.remove(session)
            self._expire(session)
        if self:
            oldest = max(elapsed(session.idle_since, now) for session in self)
            self._timer = self._loop.call_later(self._timeout - oldest, self._sweep)

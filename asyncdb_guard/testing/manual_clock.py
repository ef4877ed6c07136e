"""A clock that a test can put ahead: for open periods, idle timeouts, lifetimes, deadlines and caches."""

from __future__ import annotations

import asyncio
import math
import time
from types import TracebackType
from typing import Any, Self

from asyncdb_guard import clock

_NAMES: dict[str, Any] = clock.__dict__


class ManualClock:
    """The clock of every pool in this process, from `with` to its end. It runs as usual, until `advance()`."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._before: Any = time

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once. Raises ValueError for less than none, and for what is no finite number.

        On the running event loop, timers are due as if they had passed: an idle session is closed, a waiting `acquire`
        or a trigger's deadline ends, `asyncio.sleep` returns, at the loop's next turn. uvloop has a clock of its own
        that nobody can move: there only what the pool decides itself knows of the time.

        The loop stays ahead when the clock is put back in the end, so that what waits on it is not late.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(
                "Time cannot go back, nor to its end: advance() takes a finite number of seconds from 0 on."
            )
        self._ahead += seconds
        try:
            loop: Any = asyncio.get_running_loop()
        except RuntimeError:
            return
        if isinstance(loop, asyncio.BaseEventLoop):
            before = loop.time
            loop.__dict__["time"] = lambda: before() + seconds

    def monotonic(self) -> float:
        """What `time.monotonic()` would say."""
        return float(self._before.monotonic()) + self._ahead

    def time(self) -> float:
        """What `time.time()` would say."""
        return float(self._before.time()) + self._ahead

    def __enter__(self) -> Self:
        self._before = _NAMES["time"]  # maybe another clock of this kind, which this one goes on from
        _NAMES["time"] = self  # where clock.now() looks; whoever holds that function holds this clock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _NAMES["time"] = self._before

"""The server's own view of one role, from a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Self

from asyncdb_guard.testing.loop_thread import LoopThread
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

_LOOK_EVERY = 0.01


class Watch:
    """Looks from `with` to its end."""

    def __init__(self, server: Cluster, user: str, most: int) -> None:
        self._server = server
        self._user = user
        self._most = most
        self._thread = LoopThread("soak watch")
        self._stopped = False
        self.now = 0
        """Sessions at the last look."""
        self.crowded_for = 0.0
        """The longest time, in seconds, for which there were more than `most`."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._thread.loop.set_exception_handler(lambda *_: None)
        self._looking = asyncio.run_coroutine_threadsafe(self._look(), self._thread.loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._looking.result(30.0)
        self._thread.stop()

    async def _look(self) -> None:
        observer = Observer(self._server)
        crowded_since: float | None = None
        while not self._stopped:
            with contextlib.suppress(Exception):  # it restarts
                async with asyncio.timeout(5.0):
                    self.now = await observer.count(user=self._user)
                    if self.now <= self._most:
                        crowded_since = None
                    else:
                        crowded_since = crowded_since or time.monotonic()
                        self.crowded_for = max(self.crowded_for, time.monotonic() - crowded_since)
            await asyncio.sleep(_LOOK_EVERY)
        with contextlib.suppress(Exception):
            await observer.close()

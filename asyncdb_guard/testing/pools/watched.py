"""A pool that knows who has borrowed its connections."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from asyncdb_guard.call_site import caller
from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.initialization import Init
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.events import Listener
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.pool.acquisition import Acquisition
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.testing.pools.inside import core_of

_numbers = itertools.count(1)


class WatchedPool(GuardedPool):
    """A `GuardedPool` that remembers where each borrowed connection was borrowed. Lives as any other."""

    def __init__(
        self,
        settings: DatabaseSettings | None = None,
        *,
        credentials: Credentials | None = None,
        on_event: Listener | Iterable[Listener] = (),
        init: Init | None = None,
    ) -> None:
        super().__init__(settings, credentials=credentials, on_event=on_event, init=init)
        self.borrowed: dict[int, str] = {}
        """Where each connection was borrowed that is not back yet."""

    def acquire(self, *, timeout: float | None = None) -> Acquisition:
        """Borrow a connection, as `GuardedPool.acquire` does."""
        return _WatchedAcquisition(self, timeout, caller())

    @property
    def left_open(self) -> list[str]:
        """Where each connection was borrowed that is not back yet, as "file:line in function"."""
        return list(self.borrowed.values())


class _WatchedAcquisition(Acquisition):
    __slots__ = ("_number", "_place", "_pool")

    _number: int

    def __init__(self, pool: WatchedPool, timeout: float | None, place: str) -> None:
        super().__init__(core_of(pool), timeout)
        self._pool = pool
        self._place = place

    async def __aenter__(self) -> LentConnection:
        lent = await super().__aenter__()
        self._number = next(_numbers)
        self._pool.borrowed[self._number] = self._place
        return lent

    def release(self, error: BaseException | None) -> None:
        self._pool.borrowed.pop(self._number, None)
        super().release(error)

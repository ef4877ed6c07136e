"""A pool that knows who has borrowed its connections."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from asyncdb_guard.call_site import caller
from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.events import Listener
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.pool.acquisition import Acquisition
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.testing.pools.inside import core_of


class WatchedPool(GuardedPool):
    """A `GuardedPool` that remembers where each borrowed connection was borrowed. Lives as any other."""

    def __init__(
        self,
        settings: DatabaseSettings | None = None,
        *,
        credentials: Credentials | None = None,
        on_event: Listener | Iterable[Listener] = (),
    ) -> None:
        super().__init__(settings, credentials=credentials, on_event=on_event)
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
    __slots__ = ("_place", "_pool")

    def __init__(self, pool: WatchedPool, timeout: float | None, place: str) -> None:
        super().__init__(core_of(pool), timeout)
        self._pool = pool
        self._place = place

    async def __aenter__(self) -> LentConnection:
        lent = await super().__aenter__()
        self._pool.borrowed[id(self)] = self._place
        return lent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.borrowed.pop(id(self), None)
        await super().__aexit__(kind, error, trace)

"""The one file that opens asyncpg pools: `min_size=1, max_size=pool_max`, with no connection that nobody asked for."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
from asyncpg.pool import PoolConnectionProxy


class AdoptingPool:
    """An asyncpg pool that takes over connections that are already open; lives as long as its event loop.

    asyncpg/pool.py: after a failed `await pool`, a second one returns silently; and since 0.32, a pool whose size falls
    below `min_size` connects in the background. Neither can happen here: the pool starts with an open connection, and
    gets no connections other than those it adopts.
    """

    def __init__(self, pool_max: int) -> None:
        self._pool_max = pool_max
        self._pool: asyncpg.Pool | None = None
        self._open_connections: list[asyncpg.Connection] = []

    async def adopt(self, connection: asyncpg.Connection) -> PoolConnectionProxy:
        """Add an open connection to the pool and check it out. Does not wait for the network."""
        self._open_connections.append(connection)
        try:
            pool = self._pool
            if pool is None:
                # stored only once it is open; nothing below suspends, so there are never two
                pool = self._create()
                await pool
                self._pool = pool
            return await pool.acquire()
        finally:
            self._open_connections.clear()

    def _create(self) -> asyncpg.Pool:
        return asyncpg.create_pool(
            min_size=1,
            max_size=self._pool_max,
            max_inactive_connection_lifetime=0,  # asyncpg would keep the last one; our own timer closes it
            connect=self._hand_over,
        )

    async def _hand_over(self, *_dsn: object, **_options: object) -> asyncpg.Connection:
        """Called by asyncpg's pool for each physical connection."""
        if not self._open_connections:
            # its background maintenance is asking; a CancelledError ends that without a log or a retry
            raise asyncio.CancelledError
        return self._open_connections.pop()

    def terminate(self) -> None:
        """Close the pool and its connections at once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                pool.terminate()

"""Somebody who looks at a server from outside, with a connection that nobody counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from asyncdb_guard.testing.postgres.server import TemporaryPostgres
from asyncdb_guard.testing.postgres.sessions import sessions

T = TypeVar("T")

_LOST = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)


class Observer:
    """A lazy connection as `postgres`, made anew after a restart of the server. Lives in one event loop."""

    def __init__(self, server: TemporaryPostgres) -> None:
        self.server = server
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def sessions(self, application_name: str | None = None, user: str | None = None) -> list[asyncpg.Record]:
        """The rows of pg_stat_activity that are clients', oldest first, without the observers'."""
        return await self._ask(lambda connection: sessions(connection, application_name, user))

    async def count(self, application_name: str | None = None, user: str | None = None) -> int:
        """How many sessions there are."""
        return len(await self.sessions(application_name, user))

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a statement."""
        return await self._ask(lambda connection: connection.fetch(sql, *arguments))

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        """The first value of a statement's first row, or None."""
        return await self._ask(lambda connection: connection.fetchval(sql, *arguments))

    async def execute(self, sql: str, *arguments: Any) -> str:
        """Run a statement; return its command tag."""
        return await self._ask(lambda connection: connection.execute(sql, *arguments))

    async def terminate(self, application_name: str | None = None, user: str | None = None) -> int:
        """End these sessions as an administrator would, and say how many they were."""
        rows = await self.sessions(application_name, user)
        for row in rows:
            await self.fetchval("SELECT pg_terminate_backend($1, 5000)", row["pid"])
        return len(rows)

    async def close(self) -> None:
        """End its own session. The next question opens another one."""
        if self._connection is not None:
            await self._connection.close(timeout=5.0)
            self._connection = None

    async def _ask(self, question: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]) -> T:
        if self._connection is not None:
            try:
                return await question(self._connection)
            except _LOST:
                self._connection.terminate()
        self._connection = await self.server.connect(statement_cache_size=0)
        return await question(self._connection)

"""What `budget` asks the server, through the same settings and the same pool as a handler."""

from __future__ import annotations

import statistics
from types import TracebackType
from typing import Any, Self

import asyncpg

from asyncdb_guard.errors import GuardError
from asyncdb_guard.events import ConnectionOpened, Event
from asyncdb_guard.fleet.budget import ServerFacts
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.settings import DatabaseSettings

LOGINS = 5
"""Logins that are timed."""

# RDS keeps slots of its own beside PostgreSQL's. pg_stat_activity shows everybody whose session a row is.
_FACTS = """
    SELECT current_setting('max_connections')::int AS max_connections,
           current_setting('superuser_reserved_connections')::int
           + coalesce(nullif(current_setting('reserved_connections', true), '')::int, 0)
           + coalesce(nullif(current_setting('rds.rds_superuser_reserved_connections', true), '')::int, 0) AS reserved,
           fleet.rolname AS role, nullif(fleet.rolconnlimit, -1) AS role_limit, fleet.rolsuper AS role_is_superuser,
           (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()) AS database_limit,
           (SELECT count(*)::int FROM pg_stat_activity
            WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND usesysid <> fleet.oid
              AND pid <> pg_backend_pid()) AS others,
           (SELECT CASE WHEN bool_and(rolconnlimit >= 0) THEN sum(rolconnlimit)::int END FROM pg_roles
            WHERE rolcanlogin AND NOT rolsuper AND oid <> fleet.oid) AS others_limit
    FROM pg_roles AS fleet WHERE fleet.rolname = coalesce($1, session_user)
"""
_LIMIT = "SELECT format('ALTER ROLE %I CONNECTION LIMIT %s', $1::text, $2::int)"


async def read_facts(session: Any, role: str | None = None) -> ServerFacts | None:
    """What the server says to a pool or a connection; None if it has no such role. `role`: the session's by default."""
    row = await session.fetchrow(_FACTS, role)
    return None if row is None else ServerFacts(**dict(row))


class ServerQuestions:
    """One session to the server; use it as `async with`. Each question raises GuardError."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._logins: list[float] = []
        self._pool = GuardedPool(settings, on_event=self._note)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.close(timeout=1.0)

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionOpened):
            self._logins.append(event.seconds)

    async def login_seconds(self) -> float:
        """What a login takes from here: the median of a few."""
        while len(self._logins) < LOGINS:
            await self._pool.disconnect(timeout=1.0)
            await self._pool.ping()
        return statistics.median(self._logins)

    async def facts(self, role: str | None) -> ServerFacts:
        """What the server says. `role`: the fleet's, unless this session's role is."""
        facts = await read_facts(self._pool, role)
        if facts is None:
            raise GuardError("--role names no role of this server. Create the role first, or check its spelling.")
        return facts

    async def limit_statement(self, role: str, limit: int) -> str:
        """The statement that makes the server enforce the limit."""
        return str(await self._pool.fetchval(_LIMIT, role, limit))

    async def apply(self, statement: str) -> None:
        """Run that statement."""
        try:
            await self._pool.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            refused = True
        else:
            refused = False
        if refused:
            raise GuardError(
                "This role may not set that limit. Run the statement above as an administrator, or run this command as"
                " one, with --role."
            )

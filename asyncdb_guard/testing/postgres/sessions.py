"""Who is connected to a server, without those who only look."""

from __future__ import annotations

import asyncpg

OBSERVER = "asyncdb_guard observer"
"""The application_name of whoever only looks; `sessions()` leaves it out."""

_SESSIONS = """
    SELECT * FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> $1
      AND ($2::text IS NULL OR application_name = $2) AND ($3::text IS NULL OR usename = $3)
    ORDER BY backend_start, pid
"""


async def sessions(
    connection: asyncpg.Connection[asyncpg.Record], application_name: str | None = None, user: str | None = None
) -> list[asyncpg.Record]:
    """The clients' rows of pg_stat_activity, oldest first, without the observers'."""
    return await connection.fetch(_SESSIONS, OBSERVER, application_name, user)

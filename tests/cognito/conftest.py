"""A pool, a table of users in the test's own schema, and the names of its events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

SUB = "8b1f6a52-6f0e-4b65-9d6c-0a2d1b3c4d5e"

ENDLESS = "SELECT pg_sleep('infinity')"
"""A statement that is over when somebody cuts it off, and not before."""

TABLE = """
    CREATE TYPE {schema}.mood AS ENUM ('calm', 'keen');
    CREATE TABLE {schema}.app_user (
        cognito_sub uuid PRIMARY KEY, email text, role text NOT NULL DEFAULT 'user', attributes jsonb,
        moods {schema}.mood[] NOT NULL DEFAULT '{{calm}}', since timestamptz NOT NULL DEFAULT '2026-01-02 03:04:05Z',
        score numeric NOT NULL DEFAULT 1.50, runs integer NOT NULL DEFAULT 0
    );
    ALTER TABLE {schema}.app_user OWNER TO {schema};
    INSERT INTO {schema}.app_user (cognito_sub, email, role) VALUES ('{sub}', 'ada@example.com', 'admin');
"""


@pytest.fixture
def sub(server: Cluster, role: str) -> str:
    """The sub of a user whom the table `app_user` has."""
    server.psql(TABLE.format(schema=role, sub=SUB))
    return SUB


@pytest.fixture
def heard() -> list[str]:
    """The names of the pools' events, as they come."""
    return []


MakePool = Callable[..., GuardedPool]


@pytest.fixture
async def make_pool(url: str, heard: list[str]) -> AsyncIterator[MakePool]:
    """`make_pool(command_timeout_ms=100)`; closed after the test."""
    pools: list[GuardedPool] = []

    def make(**settings: Any) -> GuardedPool:
        pool = GuardedPool(DatabaseSettings(**{"url": url} | settings), on_event=lambda event: heard.append(event.name))
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


@pytest.fixture
def pool(make_pool: MakePool) -> GuardedPool:
    return make_pool()


class Context:
    """Lambda's context, as far as a trigger looks at it."""

    def __init__(self, remaining_ms: Any) -> None:
        self.remaining_ms = remaining_ms

    def get_remaining_time_in_millis(self) -> Any:
        return self.remaining_ms


Claims = Callable[[Any, Any], Awaitable[Any]]


def returning(value: Any) -> Claims:
    """A claims callback that asks the database for nothing."""

    async def claims(conn: Any, user: Any) -> Any:
        return value

    return claims


async def role_of(conn: Any, user: Any) -> Any:
    """A claims callback as the README has it."""
    return await conn.fetchrow("SELECT role FROM app_user WHERE cognito_sub = $1", user.sub)

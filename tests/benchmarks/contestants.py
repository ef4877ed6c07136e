"""Whatever one could take to run a statement: each borrows a connection, asks `SELECT 1` and gives it back.

All have one connection and the same bound on a statement. Where a library opens a transaction by default, it is told
not to, which is to its advantage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, Protocol, TypeAlias

import asyncpg
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from asyncdb_guard import DatabaseSettings, GuardedPool

STATEMENT = "SELECT 1"
COMMAND_TIMEOUT = 3.0
"""Seconds."""

BARE = "asyncpg connection"
ASYNCPG_POOL = "asyncpg.Pool"
NEVER = "GuardedPool, reset never"
ALWAYS = "GuardedPool, reset always"
NODE_PG = "node-pg Pool, young"
"""In the first thousand borrows of a process."""
NODE_PG_HOT = "node-pg Pool, hot"
"""After some thousand: V8 compiles what a process runs often."""


class Contestant(Protocol):
    """Runs `times` borrows with a statement each, one after the other, and returns the seconds that one took."""

    async def __call__(self, times: int, /) -> float: ...


class Borrower:
    """A contestant in this process: runs `once` back to back."""

    def __init__(self, once: Callable[[], Awaitable[object]]) -> None:
        self.once = once

    async def __call__(self, times: int) -> float:
        once = self.once
        # untimed, since all other contestants have had their turn in between
        await once()
        await once()
        began = time.perf_counter()
        for _ in range(times):
            await once()
        return (time.perf_counter() - began) / times


Maker: TypeAlias = Callable[[str], AbstractAsyncContextManager[Contestant]]
"""Makes a contestant for a database URL."""

BorrowerMaker: TypeAlias = Callable[[str], AbstractAsyncContextManager[Borrower]]
"""The same, for one in this process."""


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[Borrower]:
    connection = await asyncpg.connect(url, ssl="disable", command_timeout=COMMAND_TIMEOUT)
    try:
        yield Borrower(lambda: connection.fetchval(STATEMENT))
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Borrower]:
    pool = asyncpg.create_pool(url, min_size=1, max_size=1, ssl="disable", command_timeout=COMMAND_TIMEOUT)

    async def once() -> None:
        async with pool.acquire() as connection:
            await connection.fetchval(STATEMENT)

    async with pool:
        yield Borrower(once)


def guarded(*, session_reset: Literal["always", "never"] = "never", proxy_profile: bool = False) -> BorrowerMaker:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Borrower]:
        settings = DatabaseSettings(
            url=url,
            session_reset=session_reset,
            proxy_profile=proxy_profile,
            command_timeout_ms=round(COMMAND_TIMEOUT * 1000),
        )
        async with GuardedPool(settings) as pool:

            async def once() -> None:
                async with pool.acquire() as connection:
                    await connection.fetchval(STATEMENT)

            yield Borrower(once)

    return make


def psycopg_pool(*, check: bool) -> BorrowerMaker:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Borrower]:
        pool = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=1,
            open=False,
            kwargs={"autocommit": True},
            check=AsyncConnectionPool.check_connection if check else None,
        )

        async def once() -> None:
            async with pool.connection() as connection, asyncio.timeout(COMMAND_TIMEOUT):
                cursor = await connection.execute(STATEMENT)
                await cursor.fetchone()

        async with pool:
            yield Borrower(once)

    return make


def sqlalchemy(*, pre_ping: bool) -> BorrowerMaker:
    @asynccontextmanager
    async def make(url: str) -> AsyncIterator[Borrower]:
        options: dict[str, Any] = {"ssl": False, "command_timeout": COMMAND_TIMEOUT}
        engine = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://"),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=pre_ping,
            isolation_level="AUTOCOMMIT",
            connect_args=options,
        )
        statement = text(STATEMENT)

        async def once() -> None:
            async with engine.connect() as connection:
                (await connection.execute(statement)).scalar()

        try:
            yield Borrower(once)
        finally:
            await engine.dispose()

    return make


MAKERS: dict[str, BorrowerMaker] = {
    BARE: bare,
    NEVER: guarded(),
    ALWAYS: guarded(session_reset="always"),
    "GuardedPool, proxy profile": guarded(proxy_profile=True),
    ASYNCPG_POOL: asyncpg_pool,
    "psycopg_pool": psycopg_pool(check=False),
    "psycopg_pool, check": psycopg_pool(check=True),
    "SQLAlchemy async": sqlalchemy(pre_ping=False),
    "SQLAlchemy async, pre_ping": sqlalchemy(pre_ping=True),
}

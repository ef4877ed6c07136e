"""One environment of the fleet: a process with a pool of its own, that signs people up.

It says `{"ready": true}`, waits for a line on stdin, and then prints one JSON line for each sign-up.
It ends as an environment does, without a chance to close anything: at the latest when its parent is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import asyncpg

from examples.burst.scenario import RETRY_PAUSE, TRANSACTION_SECONDS, TRIES, TRY_SECONDS, PoolName

SIGN_UP = "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING"


class Pool(Protocol):
    """What both pools can do."""

    def acquire(self) -> AbstractAsyncContextManager[Any]: ...


class PlainPool:
    """What many services do: asyncpg's pool, all defaults, made when it is first needed."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._making = asyncio.Lock()

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[Any, None]:
        async with self._making:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])
        async with self._pool.acquire() as conn:
            yield conn


def open_pool(name: PoolName) -> Pool:
    """The one difference between the two runs. Both read DATABASE_URL, and neither connects yet."""
    if name == "plain":
        return PlainPool()
    # Here, because the plain fleet's processes do without it.
    from asyncdb_guard import GuardedPool

    return GuardedPool()


async def sign_up(pool: Pool, sub: str) -> str | None:
    """Sign one person up as Cognito would: three tries of five seconds. The last error's name, or None."""
    error = ""
    for attempt in range(TRIES):
        await asyncio.sleep(RETRY_PAUSE if attempt else 0)
        try:
            async with asyncio.timeout(TRY_SECONDS), pool.acquire() as conn, conn.transaction():
                await conn.execute(SIGN_UP, sub, f"{sub}@example.com")
                await conn.execute("SELECT pg_sleep($1)", TRANSACTION_SECONDS)
        except Exception as exception:
            error = type(exception).__name__
        else:
            return None
    return error


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def serve(name: PoolName, number: int, arrivals: list[float]) -> None:
    """Be one environment, from the first `ready` to the last sign-up."""
    # The fleet is to crowd the database, not those who watch it.
    os.nice(10)
    parent = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    pool = open_pool(name)
    say(ready=True)
    await parent.readline()
    start = time.monotonic()

    async def person(index: int, at: float) -> None:
        await asyncio.sleep(start + at - time.monotonic())
        error = await sign_up(pool, f"{name}-{number}-{index}")
        say(at=at, seconds=round(time.monotonic() - start - at, 4), error=error)

    async def end_with_parent() -> None:
        await parent.read()
        os._exit(0)

    await asyncio.gather(end_with_parent(), *(person(index, at) for index, at in enumerate(arrivals)))


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(sys.argv[1])))

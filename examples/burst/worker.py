"""One environment of the fleet: a process with its own pool that signs people up. In the third run it is several.

It prints `{"ready": true}`, waits for a line on stdin, and then prints one JSON line for each sign-up.
It ends as an environment does, without closing anything, at the latest when its parent has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

import asyncpg

from examples.burst.scenario import RETRY_PAUSE, TRANSACTION_SECONDS, TRIES, TRY_SECONDS, PoolName

SIGN_UP = "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING"


class Pool(Protocol):
    """What all pools have in common."""

    def acquire(self) -> AbstractAsyncContextManager[Any]: ...


class PlainPool:
    """What many services use: asyncpg's pool with its defaults, created when it is first needed."""

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


def open_pools(name: PoolName, environments: int) -> list[Pool]:
    """The only difference between the runs. All pools read DATABASE_URL, and none connects yet."""
    if name == "plain":
        return [PlainPool() for _ in range(environments)]
    # Imported here, because the plain fleet does not need it.
    from asyncdb_guard import GuardedPool

    return [GuardedPool() for _ in range(environments)]


class Environments:
    """Gives each call to the first one that is least busy, as a platform does which prefers those it has just used."""

    def __init__(self, pools: list[Pool]) -> None:
        self._pools = pools
        self._calls = [0] * len(pools)

    @contextmanager
    def one(self) -> Generator[Pool, None, None]:
        """The pool of one of them, for one call."""
        number = self._calls.index(min(self._calls))
        self._calls[number] += 1
        try:
            yield self._pools[number]
        finally:
            self._calls[number] -= 1


async def sign_up(environments: Environments, sub: str, failed: Callable[[], None]) -> str | None:
    """Sign one person up as Cognito would: three attempts of five seconds. Return the last error's name or None."""
    error = ""
    for attempt in range(TRIES):
        await asyncio.sleep(RETRY_PAUSE if attempt else 0)
        try:
            with environments.one() as pool:
                async with asyncio.timeout(TRY_SECONDS), pool.acquire() as conn, conn.transaction():
                    await conn.execute(SIGN_UP, sub, f"{sub}@example.com")
                    await conn.execute("SELECT pg_sleep($1)", TRANSACTION_SECONDS)
        except Exception as exception:
            error = type(exception).__name__
            failed()
        else:
            return None
    return error


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def serve(name: PoolName, number: int, environments: int, arrivals: list[float]) -> None:
    """Be one environment, or several, from `ready` to the last sign-up."""
    # The load is meant for the database, not for the processes that observe it.
    os.nice(10)
    parent = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    fleet = Environments(open_pools(name, environments))
    say(ready=True)
    await parent.readline()
    start = time.monotonic()

    async def person(index: int, at: float) -> None:
        await asyncio.sleep(start + at - time.monotonic())
        failures: list[float] = []

        def failed() -> None:
            failures.append(round(time.monotonic() - start, 4))

        error = await sign_up(fleet, f"{name}-{number}-{index}", failed)
        say(at=at, seconds=round(time.monotonic() - start - at, 4), error=error, failures=failures)

    async def end_with_parent() -> None:
        await parent.read()
        os._exit(0)

    await asyncio.gather(end_with_parent(), *(person(index, at) for index, at in enumerate(arrivals)))


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(sys.argv[1])))

"""What borrowers do with a pool: well, badly, and cancelled at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg

from asyncdb_guard import CircuitOpenError, GuardError

if TYPE_CHECKING:
    from asyncdb_guard import Connection, GuardedPool

TIMEOUTS = (0.05, 0.2, 0.6, 1.5)
"""Seconds that borrowers wait, at most."""

EXPECTED = (GuardError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Boom(Exception):
    """A block's own error."""


Use = Callable[["Connection", "GuardedPool", random.Random], Awaitable[object]]


async def ask(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.fetchval("SELECT $1::int", chance.randrange(1000))


async def read_many_rows(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.fetch("SELECT g, repeat('x', 200) FROM generate_series(1, 2000) g")


async def roll_back(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    async with connection.transaction():
        await connection.fetchval("SELECT 1")
        raise Boom


async def exceed_the_bound(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.execute("SELECT pg_sleep(5)")


async def exceed_its_own_timeout(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.execute("SELECT pg_sleep(0.3)", timeout=0.05)


async def exceed_a_deadline(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    async with asyncio.timeout(chance.random() * 0.1):
        await connection.fetchval("SELECT pg_sleep(0.2)")


async def make_a_mistake(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.execute("SELECT 1/0")


async def fail(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    raise Boom


async def leave_a_statement_running(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    stray = asyncio.ensure_future(connection.fetchval("SELECT pg_sleep(0.1)"))
    stray.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(chance.random() * 0.02)


async def leave_a_transaction_open(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.execute("BEGIN")


async def close(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    await connection.close()


async def use_a_cursor(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    async with connection.transaction():
        async for _ in connection.cursor("SELECT g FROM generate_series(1, 200) g", prefetch=20):
            pass


async def borrow_another(connection: Connection, pool: GuardedPool, chance: random.Random) -> None:
    with contextlib.suppress(GuardError):
        async with pool.acquire(timeout=0.1) as another:
            await another.fetchval("SELECT 2")


USES: tuple[Use, ...] = (
    *(ask,) * 5, read_many_rows, roll_back, exceed_the_bound, exceed_its_own_timeout, exceed_a_deadline, make_a_mistake,
    fail, leave_a_statement_running, leave_a_transaction_open, close, use_a_cursor, borrow_another,
)  # fmt: skip


class Borrowers:
    """They ask until they are told to stop; counts what became of them."""

    def __init__(self, pool: GuardedPool, chance: random.Random) -> None:
        self._pool = pool
        self._chance = chance
        self.outcomes: Counter[str] = Counter()
        self.late: list[float] = []
        """By how many seconds waits outlived their timeout."""
        self.odd: list[str] = []
        """Tracebacks of errors that nobody should ever see."""

    async def keep_asking(self, end: float) -> None:
        chance = self._chance
        while time.monotonic() < end:
            borrower = asyncio.create_task(self._borrow())
            if chance.random() < 0.15:
                await asyncio.sleep(chance.random() * 0.05)
                for _ in range(chance.choice((1, 1, 2))):
                    borrower.cancel()
                    await asyncio.sleep(0)
            await asyncio.wait([borrower])
            await asyncio.sleep(chance.random() * 0.02)

    async def _borrow(self) -> None:
        timeout = self._chance.choice(TIMEOUTS)
        asked = time.monotonic()
        got = False
        try:
            async with self._pool.acquire(timeout=timeout) as connection:
                got = True
                self._waited(asked, timeout)
                await self._chance.choice(USES)(connection, self._pool, self._chance)
            self.outcomes["served"] += 1
        except (Boom, *EXPECTED) as error:
            self.outcomes[type(error).__name__] += 1
            if isinstance(error, CircuitOpenError):
                await asyncio.sleep(0.02)
            if not got:
                self._waited(asked, timeout)
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
        except Exception as error:
            self.odd.append("".join(traceback.format_exception(error))[-900:])

    def _waited(self, asked: float, timeout: float) -> None:
        late = time.monotonic() - asked - timeout
        if late > 0:
            self.late.append(late)

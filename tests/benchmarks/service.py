"""A service under load: many tasks on one pool, each with one statement after the other, on a table with an index."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import time
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import asyncpg

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks.contestants import ALWAYS, ASYNCPG_POOL, COMMAND_TIMEOUT
from tests.benchmarks.figures import Figure, Samples, compare

THROUGHPUT = "Service load, throughput"
P99 = "Service load, p99 of a request"
TASKS = 200
POOL_SIZE = 20

_CUSTOMERS, _ORDERS = 1000, 10_000
_SCHEMA = f"""
    CREATE TABLE customer_order (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, amount int NOT NULL,
        state text NOT NULL
    );
    CREATE INDEX ON customer_order (customer, id);
    INSERT INTO customer_order (customer, amount, state)
        SELECT n % {_CUSTOMERS}, n, 'new' FROM generate_series(1, {_ORDERS}) n;
    ANALYZE customer_order;
"""
_SELECT = "SELECT id, amount, state FROM customer_order WHERE customer = $1 ORDER BY id DESC LIMIT 10"
_INSERT = "INSERT INTO customer_order (customer, amount, state) VALUES ($1, 1, 'new') RETURNING id"
_UPDATE = "UPDATE customer_order SET state = 'paid', amount = amount + 1 WHERE id = $1 RETURNING state"
_MIX = ((_SELECT, _CUSTOMERS - 1),) * 6 + ((_INSERT, _CUSTOMERS - 1),) * 2 + ((_UPDATE, _ORDERS),) * 2
"""Statements in the proportion in which they run, each with the largest value of its argument."""

_ACQUIRE_TIMEOUT_MS = 300_000
"""asyncpg's pool has none."""

Pool: TypeAlias = "GuardedPool | asyncpg.Pool"
Request: TypeAlias = tuple[str, int]


async def service_load(server: Cluster, *, rounds: int, requests: int) -> list[Figure]:
    """Requests per second and the 99th percentile of their duration, the wait for a connection included."""
    server.psql(_SCHEMA)
    url = server.url()
    settings = DatabaseSettings(
        url=url,
        pool_max=POOL_SIZE,
        session_reset="always",
        connect_timeout_ms=_ACQUIRE_TIMEOUT_MS,
        command_timeout_ms=round(COMMAND_TIMEOUT * 1000),
    )
    options: dict[str, Any] = {"ssl": "disable", "command_timeout": COMMAND_TIMEOUT}
    throughput: Samples = {ASYNCPG_POOL: [], ALWAYS: []}
    p99: Samples = {ASYNCPG_POOL: [], ALWAYS: []}
    async with AsyncExitStack() as stack:
        pools: dict[str, Pool] = {
            ASYNCPG_POOL: await stack.enter_async_context(
                asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, **options)
            ),
            ALWAYS: await stack.enter_async_context(GuardedPool(settings)),
        }
        draw = random.Random(0)
        for pool in pools.values():
            await _serve(pool, _requests(draw, 10))  # each of the sessions prepares each of the statements
        gc.collect()
        for number in range(rounds):
            work = _requests(draw, requests)
            for name in (ASYNCPG_POOL, ALWAYS) if number % 2 else (ALWAYS, ASYNCPG_POOL):
                await _serve(pools[name], [own[:1] for own in work])  # its sessions have rested for a turn
                began = time.perf_counter()
                durations = await _serve(pools[name], work)
                throughput[name].append(len(durations) / (time.perf_counter() - began))
                p99[name].append(sorted(durations)[math.ceil(0.99 * len(durations)) - 1] * 1e3)
    bars = {ALWAYS: {ASYNCPG_POOL: 1.0}}
    return compare(THROUGHPUT, throughput, "/s", bars=bars, at_least=True) + compare(P99, p99, "ms", bars=bars)


def _requests(draw: random.Random, each: int) -> list[list[Request]]:
    """What each of the tasks asks for, one after the other; the same for all contestants of a round."""
    return [[(text, draw.randint(1, most)) for text, most in draw.choices(_MIX, k=each)] for _ in range(TASKS)]


async def _serve(pool: Pool, work: list[list[Request]]) -> list[float]:
    """Let all tasks do their work at once; return the seconds that each request took."""
    durations: list[float] = []

    async def task(own: list[Request]) -> None:
        for statement, argument in own:
            began = time.perf_counter()
            async with pool.acquire() as connection:
                await connection.fetch(statement, argument)
            durations.append(time.perf_counter() - began)

    await asyncio.gather(*map(task, work))
    return durations

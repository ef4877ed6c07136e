"""A service under load: many tasks on one pool, each with one statement after the other, on a table with an index.

Each pool has a process of its own, as in a service: `python -m tests.benchmarks.service NAME URL` is one. Two pools in
one process would share the interpreter's caches and the garbage. The database is on another CPU, where there are two,
as a service's database is on another machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import random
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeAlias

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


async def service_load(server: Cluster, *, starts: int, rounds: int, requests: int, cpu: int | None) -> list[Figure]:
    """Requests per second and the 99th percentile of their duration, the wait for a connection included.

    Each service is started `starts` times and then works for so many rounds, as two processes of the same program
    differ by some per cent all their lives. `cpu`: where the services run; None leaves them where the server is.
    """
    server.psql(_SCHEMA)
    names = (ASYNCPG_POOL, ALWAYS)
    throughput: Samples = {name: [] for name in names}
    p99: Samples = {name: [] for name in names}
    for start in range(starts):
        async with AsyncExitStack() as stack:
            services = {
                name: await stack.enter_async_context(_Service.start(name, server.url(), cpu)) for name in names
            }
            for number in range(start * rounds, (start + 1) * rounds):
                for name in names if number % 2 else reversed(names):
                    a_second, slow = await services[name].work(number, requests)
                    throughput[name].append(a_second)
                    p99[name].append(slow)
    bars = {ALWAYS: {ASYNCPG_POOL: 1.0}}
    return compare(THROUGHPUT, throughput, "/s", bars=bars, at_least=True) + compare(P99, p99, "ms", bars=bars)


class _Service:
    """The other end of a service's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, name: str, url: str, cpu: int | None) -> AsyncIterator[_Service]:
        command = (sys.executable, "-m", __name__, name, url)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def work(self, seed: int, requests: int) -> tuple[float, float]:
        """Requests per second, and the 99th percentile in milliseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d %d\n" % (seed, requests))
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("A service has ended early; its error is above.")
        a_second, slow = json.loads(answer)
        return a_second, slow


async def serve(name: str, url: str) -> None:
    """A service's process: it works when its standard input says so, until that ends."""
    async with _open(name, url) as pool:
        await _run(pool, _requests(random.Random(0), 10))  # each of the sessions prepares each of the statements
        gc.collect()
        while line := await asyncio.to_thread(sys.stdin.readline):
            seed, requests = map(int, line.split())
            work = _requests(random.Random(seed), requests)
            await _run(pool, [own[:1] for own in work])  # its sessions have rested for a turn
            began = time.perf_counter()
            durations = sorted(await _run(pool, work))
            a_second = len(durations) / (time.perf_counter() - began)
            sys.stdout.write(json.dumps((a_second, durations[math.ceil(0.99 * len(durations)) - 1] * 1e3)) + "\n")
            sys.stdout.flush()


def _open(name: str, url: str) -> Pool:
    if name == ASYNCPG_POOL:
        return asyncpg.create_pool(
            url, min_size=POOL_SIZE, max_size=POOL_SIZE, ssl="disable", command_timeout=COMMAND_TIMEOUT
        )
    return GuardedPool(
        DatabaseSettings(
            url=url,
            pool_max=POOL_SIZE,
            session_reset="always",
            connect_timeout_ms=_ACQUIRE_TIMEOUT_MS,
            command_timeout_ms=round(COMMAND_TIMEOUT * 1000),
        )
    )


def _requests(draw: random.Random, each: int) -> list[list[Request]]:
    """What each of the tasks asks for, one after the other; the same for all contestants of a round."""
    return [[(text, draw.randint(1, most)) for text, most in draw.choices(_MIX, k=each)] for _ in range(TASKS)]


async def _run(pool: Pool, work: list[list[Request]]) -> list[float]:
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


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))

"""Many borrowers at once on few connections: the cost of one borrow must not grow with the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks.contestants import ASYNCPG_POOL, COMMAND_TIMEOUT, STATEMENT
from tests.benchmarks.figures import Figure, Ratio, Spread, quotients

QUEUE = "Borrow in a queue"
GUARDED = "GuardedPool"
POOL_SIZES = (1, 5)
FEW = 100

_PATIENCE_MS = 300_000

Once: TypeAlias = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _guarded(url: str, size: int) -> AsyncIterator[Once]:
    settings = DatabaseSettings(
        url=url,
        pool_max=size,
        session_reset="never",
        connect_timeout_ms=_PATIENCE_MS,
        command_timeout_ms=round(COMMAND_TIMEOUT * 1000),
    )
    async with GuardedPool(settings) as pool:
        yield lambda: pool.fetchval(STATEMENT)


@asynccontextmanager
async def _asyncpg(url: str, size: int) -> AsyncIterator[Once]:
    pool = asyncpg.create_pool(url, min_size=size, max_size=size, ssl="disable", command_timeout=COMMAND_TIMEOUT)
    async with pool:
        yield lambda: pool.fetchval(STATEMENT)


async def queues(server: Cluster, *, rounds: int, many: int) -> list[Figure]:
    """Microseconds a borrow, among a hundred borrowers and among `many`."""
    figures: list[Figure] = []
    for size in POOL_SIZES:
        async with _guarded(server.url(), size) as ours, _asyncpg(server.url(), size) as theirs:
            figures += await _grow({GUARDED: ours, ASYNCPG_POOL: theirs}, size, rounds, many)
    return figures


async def _grow(contestants: dict[str, Once], size: int, rounds: int, many: int) -> list[Figure]:
    small: dict[str, list[float]] = {name: [] for name in contestants}
    large: dict[str, list[float]] = {name: [] for name in contestants}
    for once in contestants.values():
        await _together(once, FEW)
    for _ in range(rounds):
        for name, once in contestants.items():
            times = max(many // FEW // 4, 1)
            small[name].append(sum([await _together(once, FEW) for _ in range(times)]) / times)
            large[name].append(await _together(once, many))
    figures: list[Figure] = []
    for name in contestants:
        few = f"{name} of {size}, {FEW} waiters"
        bar = 1.2 if name == GUARDED else None
        growth = Ratio(few, quotients(large[name], small[name]), bar)
        figures += [
            Figure(QUEUE, few, Spread.of(small[name]), "µs"),
            Figure(QUEUE, f"{name} of {size}, {many:,} waiters", Spread.of(large[name]), "µs", (growth,)),
        ]
    return figures


async def _together(once: Once, borrowers: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(once() for _ in range(borrowers)))
    return (time.perf_counter() - began) / borrowers * 1e6

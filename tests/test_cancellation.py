"""Cancelled at any point whatever, a borrower leaves nothing behind: no session, no task, no lease, no place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import pytest

from asyncdb_guard import CircuitOpenError, DatabaseSettings, GuardedPool
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import allow, assert_accounts_balance, at_rest
from tests.support.cancelling import Moment, cancelled_at
from tests.support.eventually import eventually

MOMENTS: tuple[Moment, ...] = ("while it waits", "with the answer")
State = Callable[[GuardedPool], Awaitable[object]]


async def cold(pool: GuardedPool) -> None:
    """No session yet."""
    await pool.disconnect()


async def warm(pool: GuardedPool) -> None:
    """A session in good health."""
    await pool.ping()


async def rested(pool: GuardedPool) -> None:
    """A session that has to be pinged."""
    await pool.ping()
    for session in pool._core.loop_pool.connections.idle:
        session.idle_since = tuple(instant - 2.0 for instant in session.idle_since)


async def aged(pool: GuardedPool) -> None:
    """A session that has to be replaced."""
    await pool.ping()
    for session in pool._core.loop_pool.connections.idle:
        session.opened_at = tuple(instant - 1e6 for instant in session.opened_at)


async def on_trial(pool: GuardedPool) -> None:
    """The next caller is the one that a half-open circuit lets through."""
    while pool.stats()["circuit"] != "open":
        with suppress(CircuitOpenError, asyncpg.ConnectionDoesNotExistError):
            async with pool.acquire():
                raise asyncpg.ConnectionDoesNotExistError("This opens the circuit.")
    await asyncio.sleep(0.002)


async def use(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_sleep(0.001)")
        async with connection.transaction():
            await connection.fetch("SELECT $1::int", 1)


async def use_after_another(pool: GuardedPool) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.fetchval("SELECT pg_sleep(0.002)"))
        await asyncio.sleep(0)
        await use(pool)


@pytest.mark.parametrize("session_reset", ["always", "never"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("state", "work"),
    [
        (cold, use),
        (warm, use),
        (rested, use),
        (aged, use),
        (on_trial, use),
        (cold, use_after_another),
        (warm, use_after_another),
    ],
)
async def test_at_every_await_of_acquire_use_and_release(
    server: Cluster,
    observer: Observer,
    url: str,
    role: str,
    state: State,
    work: State,
    moment: Moment,
    session_reset: str,
) -> None:
    allow(server, url, 1)
    settings = DatabaseSettings(
        url=url,
        session_reset=session_reset,
        breaker_fail_max=1,
        breaker_reset_timeout_ms=1,
        breaker_reset_timeout_max_ms=1,
    )
    own = asyncio.current_task()
    async with GuardedPool(settings) as pool:
        point = 0
        cancelled = True
        while cancelled:
            point += 1
            await state(pool)
            victim = asyncio.create_task(cancelled_at(point, moment, work(pool)))
            await asyncio.wait([victim])
            cancelled = victim.cancelled() or victim.result()
            assert pool.stats()["waiting"] == 0
            assert await pool.fetchval("SELECT 1") == 1  # at once: no trial is under way any more
            assert pool.stats()["circuit"] == "closed"
            await eventually(lambda: asyncio.all_tasks() == {own}, every=0.001)
            await at_rest(pool)
            stats = pool.stats()
            assert (stats["idle"], stats["lent"], stats["waiting"], stats["connect_failures"]) == (1, 0, 0, 0)
            assert_accounts_balance(pool)
        assert point > 3
        assert await observer.count(user=role) == 1
    assert await observer.count(user=role) == 0


@pytest.mark.parametrize("moment", MOMENTS)
async def test_at_every_await_of_close(
    server: Cluster, observer: Observer, url: str, role: str, moment: Moment
) -> None:
    own = asyncio.current_task()
    point = 0
    cancelled = True
    while cancelled:
        point += 1
        pool = GuardedPool(DatabaseSettings(url=url, pool_max=2))
        async with pool.acquire():
            pass
        victim = asyncio.create_task(cancelled_at(point, moment, pool.close()))
        await asyncio.wait([victim])
        cancelled = victim.cancelled() or victim.result()
        await eventually(lambda: asyncio.all_tasks() == {own}, every=0.001)
        await eventually(lambda: _none(observer, role), within=2.0)
        assert_accounts_balance(pool)
    assert point > 1


async def _none(observer: Observer, role: str) -> bool:
    return await observer.count(user=role) == 0


@pytest.mark.parametrize("moment", MOMENTS)
async def test_together_with_an_error(proxy: TcpProxy, url_via_tcp_proxy: str, moment: Moment) -> None:
    """The connect has failed and its caller was told; but the cancellation is what it learns of first."""
    proxy.refuse = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        victim = asyncio.create_task(cancelled_at(1, moment, pool.ping()))
        await asyncio.wait([victim])
        assert victim.cancelled()
        proxy.refuse = False
        await pool.ping()
        assert pool.stats()["cancellations"] == 1
        assert_accounts_balance(pool)


async def test_twice_in_a_row(server: Cluster, observer: Observer, url: str, role: str) -> None:
    """The second cancellation strikes while the first one is being tidied up."""
    allow(server, url, 1)
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1)) as pool:
        for pause in (0, 0.0005, 0.001, 0.002, 0.004):
            for _ in range(5):
                victim = asyncio.create_task(pool.execute("SELECT pg_sleep(10)"))
                await asyncio.sleep(0.005)
                victim.cancel()
                await asyncio.sleep(pause)
                victim.cancel()
                assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["connect_failures"] == 0
        assert_accounts_balance(pool)
        assert await observer.count(user=role) == 1


@pytest.mark.parametrize("pool_max", [1, 5])
@pytest.mark.slow
async def test_5_000_times_at_random(server: Cluster, observer: Observer, url: str, role: str, pool_max: int) -> None:
    allow(server, url, pool_max)
    chance = random.Random(pool_max)
    settings = DatabaseSettings(url=url, pool_max=pool_max, connect_timeout_ms=30_000, session_reset="never")

    async def borrow() -> None:
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT 1")
            await asyncio.sleep(0)

    async with GuardedPool(settings) as pool:
        cancelled = 0
        while cancelled < 5_000:
            borrowers = [asyncio.create_task(borrow()) for _ in range(250)]
            for borrower in chance.sample(borrowers, 200):
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.002)
                borrower.cancel()
            for outcome in await asyncio.gather(*borrowers, return_exceptions=True):
                cancelled += isinstance(outcome, asyncio.CancelledError)
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        stats = pool.stats()
        assert (stats["lent"], stats["waiting"], stats["connect_failures"]) == (0, 0, 0)
        assert_accounts_balance(pool)
        assert await observer.count(user=role) <= pool_max
        assert await pool.fetchval("SELECT 1") == 1

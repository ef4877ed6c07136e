"""asyncpg's other way: `conn = await pool.acquire()` … `await pool.release(conn)`."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from asyncdb_guard import CircuitOpenError, Connection, DatabaseSettings, GuardedPool, PoolClosedError, PoolInUseError
from tests.support.bound import assert_accounts_balance, at_rest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncdb_guard.testing.postgres.observer import Observer
    from tests.support.eventually import Eventually


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1, command_timeout_ms=500)) as pool:
        yield pool


async def test_a_connection_is_borrowed_and_returned(pool: GuardedPool) -> None:
    for _ in range(2):
        connection = await pool.acquire(timeout=1.0)
        assert isinstance(connection, Connection)
        assert await connection.fetchval("SELECT 1") == 1
        assert (pool.stats()["lent"], pool.stats()["idle"]) == (1, 0)
        await pool.release(connection, timeout=1.0)
        with pytest.raises(asyncpg.InterfaceError, match="released"):
            await connection.fetchval("SELECT 1")
        await at_rest(pool)
    assert pool.stats()["connects"] == 1
    assert_accounts_balance(pool)


async def test_a_second_release_does_nothing(pool: GuardedPool) -> None:
    acquisition = pool.acquire()
    first = await acquisition
    await pool.release(first)
    second = await acquisition
    await pool.release(first)
    assert await second.fetchval("SELECT 1") == 1
    with pytest.raises(RuntimeError, match="in use"):
        await acquisition
    await pool.release(second)


async def test_a_foreign_connection_is_refused(pool: GuardedPool, url: str) -> None:
    own = await asyncpg.connect(url)
    async with GuardedPool(DatabaseSettings(url=url)) as other:
        of_another = await other.acquire()
        for foreign in (own, of_another, "no connection"):
            with pytest.raises(asyncpg.InterfaceError, match="not acquired from this pool"):
                await pool.release(foreign)  # type: ignore[arg-type]
        await other.release(of_another)
    await own.close()


async def test_a_release_in_another_thread_is_refused_and_changes_nothing(pool: GuardedPool) -> None:
    connection = await pool.acquire()
    with pytest.raises(PoolInUseError, match="Release it there"):
        await asyncio.to_thread(lambda: asyncio.run(pool.release(connection)))
    assert await connection.fetchval("SELECT 1") == 1
    await pool.release(connection)
    assert await pool.fetchval("SELECT 1") == 1
    assert pool.stats()["connects"] == 1


async def test_a_block_returns_its_own(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(asyncpg.InterfaceError, match="async with"):
            await pool.release(connection)
        assert await connection.fetchval("SELECT 1") == 1
    await pool.release(connection)


async def test_after_close(pool: GuardedPool) -> None:
    connection = await pool.acquire()
    await pool.close(timeout=0.02)
    with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError, OSError)):
        await connection.fetchval("SELECT 1")
    await pool.release(connection)
    with pytest.raises(PoolClosedError):
        await pool.acquire()


async def test_the_error_that_is_being_handled_is_judged(pool: GuardedPool) -> None:
    async def lose() -> None:
        connection = await pool.acquire()
        try:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        finally:
            await pool.release(connection)

    with pytest.raises(asyncpg.PostgresError):
        await lose()
    with pytest.raises(CircuitOpenError):
        await pool.acquire()


async def test_an_older_one_is_not(pool: GuardedPool) -> None:
    def old() -> BaseException:
        return asyncpg.ConnectionFailureError("of another database")

    try:
        raise old()
    except asyncpg.PostgresError:
        connection = await pool.acquire()
        assert sys.exception() is not None
        await pool.release(connection)
    await pool.ping()


async def test_whatever_is_left_behind_is_cleared(pool: GuardedPool) -> None:
    connection = await pool.acquire()
    await connection.execute("BEGIN; SET work_mem = '5MB'")
    await pool.release(connection)
    assert await pool.fetchval("SHOW work_mem") == "4MB"


async def test_a_callback_gets_the_borrowers_connection(pool: GuardedPool, eventually: Eventually) -> None:
    connection = await pool.acquire()
    heard: list[object] = []

    def listener(of: Connection, _pid: int, _channel: str, payload: object) -> None:
        heard.append((of.get_server_pid(), payload))

    await connection.add_listener("channel", listener)
    await connection.execute("NOTIFY channel, 'news'")
    await eventually(lambda: heard == [(connection.get_server_pid(), "news")])
    await connection.remove_listener("channel", listener)
    await pool.release(connection)


async def test_one_that_is_forgotten_gives_its_place_back_and_somebody_is_told(
    pool: GuardedPool, observer: Observer, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await pool.acquire()
    pid = connection.get_server_pid()
    gc.disable()  # at once, not when the collector comes by
    try:
        del connection
        assert await pool.fetchval("SELECT pg_backend_pid()") != pid
    finally:
        gc.enable()
    assert await observer.count(user=role) == 1
    assert ["without a release" in record.getMessage() for record in caplog.records] == [True]


async def test_a_cancelled_caller_leaves_nothing_behind(pool: GuardedPool) -> None:
    async with pool.acquire():
        waiting = asyncio.ensure_future(pool.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    connection = await asyncio.wait_for(pool.acquire(), 1.0)
    await pool.release(connection)
    await at_rest(pool)
    assert_accounts_balance(pool)

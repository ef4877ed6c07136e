"""`terminate()` ends a pool at once; a pool of another loop is ended by that loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool, PoolClosedError
from asyncdb_guard.testing.postgres.observer import Observer
from tests.support.eventually import Eventually


async def test_terminate_ends_all_sessions_at_once(
    url: str, observer: Observer, role: str, eventually: Eventually
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url, pool_max=2))
    await pool.ping()
    async with pool.acquire() as connection:
        waiting = [asyncio.create_task(pool.execute("SELECT pg_sleep(5)")) for _ in range(2)]
        await eventually(lambda: pool.stats()["waiting"] == 1)
        pool.terminate()
        assert connection.is_closed()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert any(isinstance(outcome, PoolClosedError) for outcome in outcomes)

    async def gone() -> bool:
        return await observer.count(user=role) == 0

    await eventually(gone)
    with pytest.raises(PoolClosedError):
        await pool.ping()


def test_terminate_after_the_loop_was_closed(url: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.ping())
    loop.close()
    pool.terminate()
    pool.terminate()


def test_disconnect_from_another_loop_is_done_by_the_loop_that_runs(url: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        first = asyncio.run_coroutine_threadsafe(pool.fetchval("SELECT pg_backend_pid()"), loop).result(5)
        asyncio.run(pool.disconnect())
        assert asyncio.run_coroutine_threadsafe(pool.fetchval("SELECT pg_backend_pid()"), loop).result(5) != first
        asyncio.run_coroutine_threadsafe(pool.close(), loop).result(5)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def test_a_removed_listener_and_a_removed_callback_leave_nothing(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset="never")) as pool:
        async with pool.acquire() as connection:
            await connection.add_listener("news", print)
            connection.add_log_listener(print)
            await connection.remove_listener("news", print)
            connection.remove_log_listener(print)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["connects"] == 1


async def test_a_changed_codec_is_not_handed_on(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        async with pool.acquire() as connection:
            await connection.set_type_codec("jsonb", encoder=str, decoder=len, schema="pg_catalog")
            assert await connection.fetchval("SELECT '[1]'::jsonb") == 3
        assert await pool.fetchval("SELECT '[1]'::jsonb") == "[1]"
        assert pool.stats()["connects"] == 2

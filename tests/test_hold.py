"""Who holds the pool: for how long, since where, and who would wait for itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import AcquireTimeoutError, DatabaseSettings, GuardedPool
from tests.support.bound import assert_accounts_balance, at_rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncdb_guard import Event
    from tests.support.eventually import Eventually


def pool_for(url: str, **values: Any) -> GuardedPool:
    return GuardedPool(DatabaseSettings(url=url, **values))


async def test_a_borrow_that_would_wait_for_itself_is_refused_at_once(url: str) -> None:
    heard: list[str] = []
    async with pool_for(url, pool_max=2, breaker_fail_max=1) as pool:
        pool.events.add(lambda event: heard.append(event.name))
        async with pool.acquire(), pool.acquire():
            begin = time.monotonic()
            with pytest.raises(AcquireTimeoutError, match="already holds every connection"):
                await pool.fetchval("SELECT 1")
            assert time.monotonic() - begin < 1.0
        assert "acquire_timeout" in heard
        assert await pool.fetchval("SELECT 1") == 1
        await at_rest(pool)
        assert_accounts_balance(pool)


async def test_a_trial_that_is_refused_so_is_free_again(url: str) -> None:
    async with pool_for(url) as pool:
        async with pool.acquire():
            for _ in range(3):
                with pytest.raises(AcquireTimeoutError, match="already holds every connection"):
                    await pool.ping()
        await pool.ping()


async def test_a_caller_that_is_cancelled_meanwhile_leaves_nothing_behind(url: str) -> None:
    async with pool_for(url) as pool:

        async def nested() -> None:
            async with pool.acquire():
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await pool.ping()

        await pool.ping()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(nested())
        await pool.ping()
        await at_rest(pool)
        assert_accounts_balance(pool)


@pytest.mark.parametrize("who", ["another task", "whoever is handed it"])
async def test_a_connection_that_somebody_else_may_return_is_waited_for(url: str, who: str) -> None:
    async with pool_for(url) as pool:
        if who == "another task":
            held = asyncio.Event()

            async def hold() -> None:
                async with pool.acquire():
                    held.set()
                    await asyncio.sleep(0.02)

            holder = asyncio.create_task(hold())
            await held.wait()
            assert await pool.fetchval("SELECT 1") == 1
            await holder
        else:
            connection = await pool.acquire()
            asyncio.get_running_loop().call_later(0.02, lambda: asyncio.ensure_future(pool.release(connection)))
            assert await pool.fetchval("SELECT 1") == 1


async def test_the_time_for_which_connections_are_held_adds_up(url: str) -> None:
    async with pool_for(url) as pool:
        await pool.ping()
        before = pool.stats()["held_ms"]
        async with pool.acquire():
            await asyncio.sleep(0.03)
        assert 25 <= pool.stats()["held_ms"] - before < 2000


@pytest.mark.parametrize("way", ["async with", "await"])
async def test_a_block_that_lasts_long_is_told_with_its_place(
    url: str, way: str, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    heard: list[Event] = []
    async with pool_for(url, hold_warning_ms=20) as pool:
        await pool.ping()
        await at_rest(pool)
        caplog.clear()  # on a busy machine, that took as long
        pool.events.add(heard.append)
        if way == "await":
            connection = await pool.acquire()
            await eventually(lambda: heard)
            await pool.release(connection)
        else:
            async with pool.acquire():
                await eventually(lambda: heard)
        await at_rest(pool)
    (event,) = [event for event in heard if event.name == "connection_held"]
    assert event.seconds >= 0.02  # type: ignore[attr-defined]
    (record,) = caplog.records
    assert "test_hold.py:" in record.getMessage()
    assert "in test_a_block_that_lasts_long_is_told_with_its_place" in record.getMessage()


async def test_a_short_one_is_not(url: str, caplog: pytest.LogCaptureFixture, later: Callable[[float], None]) -> None:
    async with pool_for(url, hold_warning_ms=30_000) as pool:
        for _ in range(5):
            await pool.fetchval("SELECT 1")
            later(20)
        await at_rest(pool)
        later(40)
        await asyncio.sleep(0.001)  # a timer that was due would have fired
    assert caplog.records == []


async def test_the_warning_does_not_keep_a_forgotten_borrow_alive(
    url: str, caplog: pytest.LogCaptureFixture, later: Callable[[float], None]
) -> None:
    async with pool_for(url, hold_warning_ms=30_000) as pool:
        connection = await pool.acquire()
        pid = connection.get_server_pid()
        del connection
        assert await pool.fetchval("SELECT pg_backend_pid()") != pid
        await at_rest(pool)
        later(40)
        await asyncio.sleep(0.001)  # a timer that was due would have fired
    assert ["without a release" in record.getMessage() for record in caplog.records] == [True]

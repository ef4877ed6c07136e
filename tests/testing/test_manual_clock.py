"""`ManualClock`: every part that depends on time knows of the time that a test let pass."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from asyncdb_guard import AcquireTimeoutError, DatabaseSettings, GuardedPool, TriggerFailedError, clock
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.caching.memory import MemoryCache
from asyncdb_guard.testing import ManualClock, Observer, TcpProxy, recorded, token_event
from tests.support.bound import at_rest
from tests.support.eventually import Eventually


def test_it_runs_as_usual_and_can_be_put_ahead() -> None:
    outside = clock.now()
    with ManualClock() as manual:
        before = clock.now()
        assert before >= outside
        manual.advance(60)
        manual.advance(0)
        assert 60 <= clock.elapsed(before, clock.now()) < 61
        assert manual.monotonic() > time.monotonic() + 59
        assert manual.time() > time.time() + 59
        for impossible in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="cannot go back"):
                manual.advance(impossible)
        with ManualClock() as inner:
            inner.advance(5)
            assert 65 <= clock.elapsed(before, clock.now()) < 66
        assert 60 <= clock.elapsed(before, clock.now()) < 61
    assert clock.elapsed(outside, clock.now()) < 1


async def test_an_idle_session_ends_at_the_loops_next_turn(
    url: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with ManualClock() as manual, recorded(pool) as events:
            await pool.ping()
            await at_rest(pool)
            manual.advance(61)
            await eventually(lambda: events.names == ["connection_opened", "connection_closed"])
        assert await observer.count(user=role) == 0


async def test_a_session_that_is_too_old_is_replaced(url: str) -> None:
    settings = DatabaseSettings(url=url, idle_timeout_ms=3_600_000, session_reset="never", connect_timeout_ms=10_000)
    async with GuardedPool(settings) as pool:
        with ManualClock() as manual, recorded(pool) as events:
            await pool.ping()
            await at_rest(pool)
            manual.advance(1800 * 1.1)
            await pool.ping()
        assert [getattr(event, "reason", None) for event in events] == [None, "max_lifetime", None]


async def test_whoever_waits_for_a_connection_gives_up(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool, pool.acquire():
        waiting = asyncio.create_task(pool.ping())
        await asyncio.sleep(0)
        began = time.monotonic()
        with ManualClock() as manual:
            manual.advance(2)
            with pytest.raises(AcquireTimeoutError):
                await waiting
        assert time.monotonic() - began < 1


async def test_a_triggers_deadline_ends(url_via_tcp_proxy: str, proxy: TcpProxy, eventually: Eventually) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        proxy.hang = True
        trigger = asyncio.create_task(CognitoTriggers(pool, claims="SELECT 1 AS one").load_claims(token_event()))
        await eventually(lambda: proxy.accepted == 1)
        with ManualClock() as manual:
            manual.advance(4)
            with pytest.raises(TriggerFailedError):
                await trigger


async def test_cached_claims_expire() -> None:
    cache = MemoryCache()  # its clock is a default argument
    with ManualClock() as manual:
        await cache.put(CacheKey("user", "entry"), "value", 60)
        manual.advance(59)
        assert await cache.get(CacheKey("user", "entry")) == "value"
        manual.advance(2)
        assert await cache.get(CacheKey("user", "entry")) is None


def test_uvloops_own_clock_stays_what_it_is() -> None:
    async def main() -> None:
        before, loop = clock.now(), asyncio.get_running_loop()
        with ManualClock() as manual:
            manual.advance(60)
            assert clock.elapsed(before, clock.now()) >= 60
            assert loop.time() < before[0] + 59

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

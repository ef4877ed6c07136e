"""Never more than `pool_max` sessions, and no wait without an end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import (
    AcquireTimeoutError,
    ConnectFailedError,
    ConnectTimeoutError,
    DatabaseSettings,
    GuardedPool,
    GuardError,
    PoolClosedError,
)
from asyncdb_guard.events import Event
from asyncdb_guard.pool.connections import GROWTH_PAUSE, GROWTH_PAUSE_MAX
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import allow, assert_accounts_balance, at_rest
from tests.support.eventually import Eventually, eventually


@pytest.mark.parametrize("pool_max", [1, 5])
@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_300_borrowers_of_whom_120_are_cancelled_never_need_one_session_more(
    server: Cluster, url: str, pool_max: int, session_reset: str
) -> None:
    allow(server, url, pool_max)
    settings = DatabaseSettings(
        url=url, pool_max=pool_max, session_reset=session_reset, connect_timeout_ms=20_000, breaker_fail_max=1
    )
    chance = random.Random(pool_max)

    async def borrow(number: int) -> int:
        async with pool.acquire() as connection:
            if number % 3 == 0:
                async with connection.transaction():
                    return await connection.fetchval("SELECT $1::int FROM pg_sleep(0.002)", number)
            await connection.execute("SELECT pg_sleep(0.001)")
            return number

    async with GuardedPool(settings) as pool:
        borrowers = [asyncio.create_task(borrow(number)) for number in range(300)]
        victims = chance.sample(borrowers, 120)
        for victim in victims:
            await asyncio.sleep(chance.random() * 0.005)
            victim.cancel()
        outcomes = await asyncio.gather(*borrowers, return_exceptions=True)
        assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
        assert sum(outcome in range(300) for outcome in outcomes) >= 180
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["connect_failures"] == 0
        assert_accounts_balance(pool)


@pytest.mark.slow
async def test_sessions_that_end_for_any_reason_make_room_before_the_next_is_opened(server: Cluster, url: str) -> None:
    allow(server, url, 1)
    settings = DatabaseSettings(url=url, session_reset="never", max_lifetime_ms=100, breaker_fail_max=1)
    async with GuardedPool(settings) as pool:
        for _ in range(10):
            async with pool.acquire() as connection:
                await connection.execute("BEGIN")  # left open: this session is not lent again
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(0.12)")  # too old afterwards
            with suppress(TimeoutError):
                async with pool.acquire() as connection, asyncio.timeout(0.02):
                    await connection.execute("SELECT pg_sleep(10)")  # cancelled
        stats = pool.stats()
        assert stats["connect_failures"] == 0
        assert stats["closed"] >= 10
        assert stats["replaced"] >= 5


async def test_a_pool_of_five_has_five_and_five_only(observer: Observer, url: str, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, pool_max=5)) as pool:
        await pool.ping()
        assert await observer.count(user=role) == 1
        pids = await asyncio.gather(*(pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.01)") for _ in range(40)))
        assert len(set(pids)) == 5
        assert await observer.count(user=role) == 5


async def test_one_call_opens_one_session_whatever_the_ceiling(
    observer: Observer, proxy: TcpProxy, url_via_tcp_proxy: str, role: str
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=20)) as pool:
        for _ in range(3):
            await pool.ping()
        assert proxy.accepted == 1
        assert await observer.count(user=role) == 1


async def test_a_burst_opens_as_many_sessions_as_it_has_callers(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=20)) as pool:
        await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.2)") for _ in range(7)))
        assert proxy.accepted == 7
        await at_rest(pool)
        assert pool.stats()["idle"] == 7


async def test_a_server_with_eight_free_seats_serves_a_pool_of_twenty(
    server: Cluster, observer: Observer, url: str, role: str
) -> None:
    allow(server, url, 8)
    heard: list[Event] = []
    settings = DatabaseSettings(url=url, pool_max=20, breaker_fail_max=1)
    async with GuardedPool(settings, on_event=heard.append) as pool:
        await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.02)") for _ in range(100)))
        assert await observer.count(user=role) == 8
        stats = pool.stats()
        assert (stats["acquired"], stats["failures"], stats["circuit"]) == (100, 0, "closed")
        pauses = [event for event in heard if event.name == "growth_paused"]
        assert stats["connect_failures"] == len(pauses) > 0
        assert all(0 < pause.seconds <= GROWTH_PAUSE_MAX for pause in pauses)
        assert_accounts_balance(pool)


async def test_a_connect_that_ends_just_as_a_waiter_gives_up_is_over(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    async def serves() -> bool:
        with suppress(GuardError):
            await stack.enter_async_context(pool.acquire(timeout=2.0))
            return True
        return False

    settings = DatabaseSettings(url=url_via_tcp_proxy, pool_max=2, connect_timeout_ms=100, breaker_fail_max=1000)
    async with GuardedPool(settings) as pool, AsyncExitStack() as stack:
        await eventually(serves)
        proxy.hang = True
        with suppress(AcquireTimeoutError):
            await pool.ping(timeout=0.2)
        waiting = asyncio.create_task(pool.ping(timeout=0.5))
        await asyncio.sleep(0)
        # the place of the connect and the time of the waiter are up in the same round of the loop
        time.sleep(0.55)  # noqa: ASYNC251
        with suppress(AcquireTimeoutError):
            await waiting
        proxy.hang = False
        await eventually(serves)
        with pytest.raises(AcquireTimeoutError, match="No connection"):
            await pool.ping(timeout=0.02)


async def test_a_pool_that_could_not_grow_says_so_in_the_timeout_and_grows_later(
    server: Cluster, observer: Observer, url: str, role: str, later: Callable[[float], None]
) -> None:
    allow(server, url, 1)
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool, pool.acquire():
        with pytest.raises(AcquireTimeoutError, match=r"could not open another one\. .* no connections left"):
            await pool.ping(timeout=0.05)
        assert pool.stats()["connect_failures"] == 1
        allow(server, url, 2)
        later(GROWTH_PAUSE)
        await pool.ping()
        assert await observer.count(user=role) == 2


async def test_waiters_get_a_failed_connects_error_once_no_session_is_left_to_wait_for(
    server: Cluster, url: str, role: str, observer: Observer
) -> None:
    allow(server, url, 1)
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        async with pool.acquire():
            waiting = asyncio.create_task(pool.ping(timeout=5.0))
            await eventually(lambda: pool.stats()["connect_failures"] == 1)
            allow(server, url, 0)
            await observer.terminate(user=role)
            with pytest.raises(ConnectFailedError, match="no connections left"):
                await waiting
        assert_accounts_balance(pool)


async def test_50_callers_behind_a_hung_connect_end_by_their_own_timeout(
    proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    proxy.hang = True

    async def borrow() -> float:
        started = time.monotonic()
        with pytest.raises(AcquireTimeoutError):
            async with pool.acquire(timeout=0.6):
                pass
        return time.monotonic() - started

    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        waits = await asyncio.gather(*(borrow() for _ in range(50)))
        assert min(waits) > 0.55
        assert max(waits) < 1.8  # sooner than CONNECT_TIMEOUT
        assert proxy.accepted == 1


async def test_a_failed_connect_fails_one_caller_and_the_next_gets_a_connect_of_its_own(
    proxy: TcpProxy, url_via_tcp_proxy: str, eventually: Eventually
) -> None:
    proxy.hang = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        first = asyncio.create_task(pool.ping())
        await eventually(lambda: proxy.accepted == 1)
        second = asyncio.create_task(pool.ping())
        await asyncio.sleep(0)
        proxy.hang = False
        proxy.drop_all()
        with pytest.raises(ConnectFailedError):
            await first
        await second
        assert proxy.accepted == 2


async def test_a_connect_slower_than_its_caller_serves_the_next(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    proxy.latency = 0.05
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        with pytest.raises(ConnectTimeoutError):
            await pool.ping(timeout=0.1)
        await pool.ping()
        assert proxy.accepted == 1
        assert pool.stats()["connects"] == 1


async def test_a_timeout_of_zero_takes_what_is_there_and_waits_for_nothing(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with pytest.raises(AcquireTimeoutError):
            async with pool.acquire(timeout=0):
                pass
        await pool.ping()
        await at_rest(pool)
        lent = await pool.acquire(timeout=0)
        with pytest.raises(AcquireTimeoutError, match=r"within 0\.\d\d s\. Return .* LAMBDA_DATABASE_POOL_MAX"):
            async with pool.acquire(timeout=0):
                pass
        await pool.release(lent)
        assert_accounts_balance(pool)


async def test_a_full_pool_is_nobodys_failure(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1)) as pool, pool.acquire():
        for _ in range(3):
            with pytest.raises(AcquireTimeoutError) as caught:
                await pool.ping(timeout=0.02)
            assert not isinstance(caught.value, ConnectFailedError)
        assert pool.stats()["circuit"] == "closed"


async def test_nobody_overtakes_a_caller_whose_session_is_pinged(url: str) -> None:
    served = []

    async def borrow(number: int) -> None:
        async with pool.acquire():
            served.append(number)

    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        await asyncio.gather(pool.ping(), pool.ping())
        await at_rest(pool)
        resting = pool._core.loop_pool.connections.idle[-1]
        resting.idle_since = tuple(instant - 2.0 for instant in resting.idle_since)
        await asyncio.gather(*(borrow(number) for number in range(3)))
        assert served == [0, 1, 2]


async def test_first_come_first_served(url: str) -> None:
    served = []

    async def borrow(number: int) -> None:
        async with pool.acquire() as connection:
            served.append(number)
            await connection.execute("SELECT 1")

    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        borrowers = [asyncio.create_task(borrow(number)) for number in range(30)]
        await asyncio.gather(*borrowers)
        assert served == list(range(30))


@pytest.mark.slow
async def test_10_000_wait_and_all_are_served(url: str) -> None:
    async def borrow() -> None:
        async with pool.acquire():
            pass

    settings = DatabaseSettings(url=url, connect_timeout_ms=30_000, session_reset="never")
    async with GuardedPool(settings) as pool:
        await asyncio.gather(*(borrow() for _ in range(10_000)))
        assert pool.stats()["acquired"] == 10_000
        assert pool.stats()["connects"] == 1
        assert_accounts_balance(pool)


@pytest.mark.slow
async def test_10_000_wait_and_all_are_told_that_the_pool_closes(url: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=30_000))
    async with pool.acquire():
        waiting = [asyncio.create_task(pool.ping()) for _ in range(10_000)]
        await asyncio.sleep(0)
        assert pool.stats()["waiting"] == 10_000
        closing = asyncio.create_task(pool.close())
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {PoolClosedError}
    await closing


async def test_a_release_ends_though_the_server_process_has_stopped(
    server: Cluster, observer: Observer, url: str, role: str, eventually: Eventually
) -> None:
    settings = DatabaseSettings(url=url, command_timeout_ms=300)
    async with GuardedPool(settings) as pool:
        async with pool.acquire() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            os.kill(pid, signal.SIGSTOP)
            started = time.monotonic()
        try:
            assert time.monotonic() - started < 1.5
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
        finally:
            os.kill(pid, signal.SIGCONT)
        # its client vanished while it could not see that; now it can
        await eventually(lambda: observer.count(user=role), within=2.0)
        await eventually(lambda: _is_one(observer, role), within=2.0)


async def _is_one(observer: Observer, role: str) -> bool:
    return await observer.count(user=role) == 1


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(30)", None])
@pytest.mark.slow
async def test_close_cuts_off_a_borrower_who_never_returns(
    observer: Observer, url: str, role: str, statement: str | None, eventually: Eventually
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url, command_timeout_ms=60_000))

    async def borrow() -> None:
        async with pool.acquire() as connection:
            if statement is not None:
                await connection.execute(statement)
            await asyncio.Event().wait()

    borrower = asyncio.create_task(borrow())
    await eventually(lambda: pool.stats()["lent"])
    started = time.monotonic()
    await pool.close(timeout=2.4)  # a quarter of it is for the goodbyes
    assert time.monotonic() - started < 2.8
    assert await observer.count(user=role) == 0
    borrower.cancel()
    await asyncio.wait([borrower])
    assert pool.stats()["lent"] == 0
    assert pool.stats()["closed"] == 1


async def test_close_waits_for_a_borrower_who_returns(observer: Observer, url: str, role: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    async with pool.acquire() as connection:
        closing = asyncio.create_task(pool.close(timeout=5.0))
        assert await connection.fetchval("SELECT 1 FROM pg_sleep(0.05)") == 1
        assert not closing.done()
    started = time.monotonic()
    await closing
    assert time.monotonic() - started < 1.0
    assert await observer.count(user=role) == 0


async def nobody(observer: Observer, role: str) -> bool:
    return await observer.count(user=role) == 0


async def test_a_close_that_its_caller_cuts_short_still_ends_the_session(
    observer: Observer, url: str, role: str, eventually: Eventually
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    async with pool.acquire():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.close(timeout=2.0), 0.05)
    await eventually(lambda: nobody(observer, role))
    await pool.close()


@pytest.mark.slow
async def test_a_second_close_in_the_middle_of_the_first_keeps_its_own_time(
    observer: Observer, url: str, role: str
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    async with pool.acquire():
        first = asyncio.create_task(pool.close(timeout=5.0))
        await asyncio.sleep(0)
        await pool.close(timeout=0.2)
        assert await observer.count(user=role) == 0
    await first


async def plainly(pool: GuardedPool) -> None:
    await pool.execute("SELECT pg_sleep(9)")


async def in_a_transaction(pool: GuardedPool) -> None:
    async with pool.transaction() as connection:
        await connection.execute("SELECT pg_sleep(9)")


async def in_a_task_group(pool: GuardedPool) -> None:
    async with pool.acquire() as connection, asyncio.TaskGroup() as group:
        group.create_task(connection.execute("SELECT pg_sleep(9)"))


async def swallowed(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        with suppress(asyncpg.ConnectionDoesNotExistError):
            await connection.execute("SELECT pg_sleep(9)")


async def told_as_another_error(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        try:
            await connection.execute("SELECT pg_sleep(9)")
        except asyncpg.ConnectionDoesNotExistError as error:
            raise LookupError from error


@pytest.mark.parametrize("fault", ["reset_all", "drop_all"])
@pytest.mark.parametrize("run", [plainly, in_a_transaction, in_a_task_group, swallowed, told_as_another_error])
@pytest.mark.slow
async def test_a_statement_that_still_runs_for_a_broken_connection_keeps_its_place(
    server: Cluster,
    proxy: TcpProxy,
    url_via_tcp_proxy: str,
    observer: Observer,
    role: str,
    eventually: Eventually,
    fault: str,
    run: Callable[[GuardedPool], Awaitable[None]],
) -> None:
    allow(server, url_via_tcp_proxy, 1)
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=10)) as pool:
        for _ in range(3):
            running = asyncio.ensure_future(run(pool))
            await eventually(lambda: _is_asleep(observer, role))
            getattr(proxy, fault)()
            await asyncio.wait([running])
            assert await pool.fetchval("SELECT 1") == 1
            running.exception()
        assert pool.stats()["connect_failures"] == 0


async def test_close_during_a_connect_leaves_no_session(observer: Observer, url: str, role: str) -> None:
    for _ in range(10):
        pool = GuardedPool(DatabaseSettings(url=url))
        asked = asyncio.create_task(pool.ping())
        for _ in range(random.randrange(1, 12)):
            await asyncio.sleep(0)
        await pool.close()
        await asyncio.wait([asked])
        assert await observer.count(user=role) == 0


async def test_close_ends_in_time_while_a_connect_hangs(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    proxy.hang = True
    pool = GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, connect_timeout_ms=10_000))
    asked = asyncio.create_task(pool.ping())
    await eventually(lambda: proxy.accepted == 1)
    started = time.monotonic()
    await pool.close(timeout=0.2)
    assert time.monotonic() - started < 2.0
    with pytest.raises(PoolClosedError):
        await asked


async def test_a_disconnect_takes_no_longer_than_the_server(url: str, observer: Observer, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        running = asyncio.create_task(pool.execute("SELECT pg_sleep(9)"))
        await eventually(lambda: _is_asleep(observer, role))
        started = time.monotonic()
        await pool.disconnect(timeout=5.0)
        assert time.monotonic() - started < 2.5
        assert await observer.count(user=role) == 0
        await asyncio.wait([running])
        running.exception()


async def _is_asleep(observer: Observer, role: str) -> bool:
    return any("pg_sleep" in row["query"] for row in await observer.sessions(user=role))


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(5)", "SELECT 1"])
async def test_whoever_asks_during_a_disconnect_waits_for_the_same_place(
    server: Cluster, url: str, statement: str
) -> None:
    allow(server, url, 1)
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1, command_timeout_ms=10_000)) as pool:
        for _ in range(5):
            await pool.ping()
            await at_rest(pool)
            busy = asyncio.create_task(pool.execute(statement))
            await asyncio.sleep(0.005)  # it has the connection after the first step
            _, answer = await asyncio.gather(pool.disconnect(), pool.fetchval("SELECT 1"))
            assert answer == 1
            await asyncio.wait([busy])
        assert pool.stats()["connect_failures"] == 0
        assert_accounts_balance(pool)


@asynccontextmanager
async def unanswered(proxy: TcpProxy) -> AsyncIterator[None]:
    proxy.hang = True
    yield
    proxy.hang = False


@asynccontextmanager
async def refused(proxy: TcpProxy) -> AsyncIterator[None]:
    await proxy.stop_listening()
    yield
    await proxy.listen_again()


# The cancel request is a connection of its own.
@pytest.mark.parametrize(("fault", "limit"), [(unanswered, {"timeout": 0.1}), (refused, {})])
async def test_a_session_whose_cancel_request_fails_keeps_its_place_until_the_server_ends_it(
    fault: Callable[[TcpProxy], AbstractAsyncContextManager[None]], limit: dict[str, float],
    server: Cluster, proxy: TcpProxy, url_via_tcp_proxy: str, observer: Observer, role: str,
) -> None:  # fmt: skip
    allow(server, url_via_tcp_proxy, 1)
    settings = DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1, command_timeout_ms=10_000)
    async with GuardedPool(settings) as pool:
        await pool.ping()
        await at_rest(pool)
        busy = asyncio.create_task(pool.execute("SELECT pg_sleep(9)"))
        await eventually(lambda: pool.stats()["lent"] == 1)
        async with fault(proxy):
            await pool.disconnect(**limit)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["connect_failures"] == 0
        assert await observer.count(user=role) == 1
        await asyncio.wait([busy])
        busy.exception()


async def test_a_disconnect_during_a_connect_leaves_no_session(observer: Observer, url: str, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        for steps in range(1, 12):
            asked = asyncio.create_task(pool.ping())
            for _ in range(steps):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
            await pool.disconnect()
            assert await observer.count(user=role) == 0


async def test_a_borrower_whose_release_the_close_cuts_short_is_not_cancelled(url: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))

    async def borrow() -> int:
        async with pool.acquire() as connection:
            pids.append(await connection.fetchval("SELECT pg_backend_pid()"))
            os.kill(pids[0], signal.SIGSTOP)
        return pids[0]

    pids: list[int] = []
    borrower = asyncio.create_task(borrow())
    try:
        while not pids:
            await asyncio.wait([borrower], timeout=0.001)
        await pool.close(timeout=0.1)
        assert await borrower == pids[0]
    finally:
        os.kill(pids[0], signal.SIGCONT)


async def test_a_statement_that_outlived_its_block_is_not_handed_on(url: str) -> None:
    settings = DatabaseSettings(url=url, session_reset="never")
    async with GuardedPool(settings) as pool:
        for call in ("fetch", "execute"):
            strays = []
            with suppress(KeyError):
                async with pool.acquire() as connection:
                    strays.append(asyncio.create_task(getattr(connection, call)("SELECT pg_sleep(30)")))
                    await asyncio.sleep(0.01)
                    raise KeyError
            assert await pool.fetchval("SELECT 1") == 1
            await asyncio.wait(strays)
            assert strays[0].exception() is not None


STRAYS = {
    "fetch": lambda connection: connection.fetch("SELECT pg_sleep(30)"),
    "execute": lambda connection: connection.execute("SELECT pg_sleep(30)"),
    "copy": lambda connection: connection.copy_from_query("SELECT pg_sleep(30)", output=os.devnull),
}


@pytest.mark.parametrize("knobs", [{"session_reset": "always"}, {"session_reset": "never"}, {"proxy_profile": True}])
@pytest.mark.parametrize("kind", STRAYS)
async def test_a_statement_that_outlived_a_block_in_peace_is_not_handed_on(
    url: str, kind: str, knobs: dict[str, Any]
) -> None:
    async with GuardedPool(DatabaseSettings(url=url, **knobs)) as pool:
        async with pool.acquire() as connection:
            stray = asyncio.ensure_future(STRAYS[kind](connection))
            await asyncio.sleep(0.01)
        assert await pool.fetchval("SELECT 1") == 1
        await asyncio.wait([stray])
        assert stray.exception() is not None


async def test_a_timeout_bounds_all_of_a_ping(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        await pool.ping(timeout=1.0)
        await at_rest(pool)
        proxy.deaf = True
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await pool.ping(timeout=0.1)
        assert time.monotonic() - started < 1.8  # sooner than COMMAND_TIMEOUT and CONNECT_TIMEOUT
        proxy.deaf = False
        await pool.disconnect(timeout=0.1)


async def test_one_acquisition_entered_twice_at_once_loses_no_session(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        acquisition = pool.acquire()
        first, second = await asyncio.gather(acquisition.__aenter__(), acquisition.__aenter__(), return_exceptions=True)
        assert isinstance(second, RuntimeError)
        assert isinstance(first, asyncpg.pool.PoolConnectionProxy)
        await acquisition.__aexit__(None, None, None)
        await at_rest(pool)
        assert (pool.stats()["lent"], pool.stats()["idle"]) == (0, 1)
        async with acquisition:  # and again, now that it is over
            pass


async def test_an_acquisition_that_came_to_nothing_can_be_tried_again(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        acquisition = pool.acquire(timeout=0)
        with pytest.raises(AcquireTimeoutError):
            await acquisition.__aenter__()
        await pool.ping()
        await at_rest(pool)
        async with acquisition as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_a_coroutine_that_is_closed_in_the_queue_gets_no_session(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        lent = await pool.acquire()
        waiting = pool.fetchval("SELECT 1")
        waiting.send(None)
        assert pool.stats()["waiting"] == 1
        waiting.close()
        assert pool.stats()["waiting"] == 0
        await pool.release(lent)
        assert await pool.fetchval("SELECT 1", timeout=1.0) == 1
        assert_accounts_balance(pool)


async def test_a_disconnect_hands_no_dying_session_to_a_caller_who_queues(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset="never")) as pool:
        begun, done = asyncio.Event(), asyncio.Event()

        async def borrow() -> None:
            async with pool.acquire() as connection:
                await connection.execute("SELECT 1")
                begun.set()
                await done.wait()

        borrower = asyncio.create_task(borrow())
        await begun.wait()
        queueing = asyncio.create_task(pool.fetchval("SELECT 1"))
        await asyncio.sleep(0.01)
        done.set()
        await pool.disconnect()
        assert await queueing == 1
        await borrower


if sys.version_info >= (3, 12):

    async def test_tasks_that_start_eagerly_are_no_trouble(
        url: str, role: str, observer: Observer, eventually: Eventually
    ) -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with GuardedPool(DatabaseSettings(url=url, pool_max=3)) as pool:
            async with pool.acquire() as one:
                await pool.ping()
                await observer.terminate(user=role)
                await eventually(one.is_closed)
                await pool.disconnect()
            assert await observer.count(user=role) == 0
            assert await pool.fetchval("SELECT 1") == 1

"""An open circuit lets nothing through: no caller, no packet, nothing in the background; then one trial at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import asyncpg
import pytest

from asyncdb_guard import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConnectFailedError,
    ConnectTimeoutError,
    DatabaseSettings,
    DatabaseUnavailableError,
    GuardedPool,
)
from asyncdb_guard.events import Event
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import assert_accounts_balance, at_rest
from tests.support.eventually import Eventually


async def quiet(proxy: TcpProxy, seconds: float) -> bool:
    """Whether nobody connects and no byte comes for so long."""
    seen = proxy.accepted, proxy.client_bytes
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (proxy.accepted, proxy.client_bytes) != seen:
            return False
        await asyncio.sleep(0.02)
    return True


async def test_a_dead_database_gives_three_errors_of_its_own_and_then_one_refusal_after_the_other(
    proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    heard: list[Event] = []
    proxy.refuse = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy), on_event=heard.append) as pool:
        for _ in range(3):
            with pytest.raises(ConnectFailedError) as failed:
                await pool.ping()
            assert isinstance(failed.value.__cause__, OSError | asyncpg.ConnectionDoesNotExistError)
        for _ in range(5):
            with pytest.raises(CircuitOpenError) as refused:
                await pool.ping()
            assert refused.value.retry_after is not None
            assert 0 < refused.value.retry_after <= 2
        assert proxy.accepted == 3
        assert pool.stats()["circuit"] == "open"
        assert [event.name for event in heard] == ["circuit_opened", *["circuit_rejected"] * 5]
        assert_accounts_balance(pool)


async def test_what_follows_the_trip_is_one_cancel_request_and_a_reset(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    settings = DatabaseSettings(
        url=url_via_tcp_proxy, command_timeout_ms=50, breaker_fail_max=1, breaker_reset_timeout_ms=5000
    )
    async with GuardedPool(settings) as pool:
        await pool.ping()
        await at_rest(pool)
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(9)")
        assert pool.stats()["circuit"] == "open"
        await at_rest(pool)
        assert (proxy.accepted, proxy.cancel_requests) == (2, 1)
        for _ in range(20):
            with pytest.raises(CircuitOpenError):
                await pool.ping()
        assert await quiet(proxy, 0.2)


async def test_one_connect_that_meets_silence_opens_the_circuit_of_a_pool_without_sessions(
    proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    proxy.hang = True
    settings = DatabaseSettings(url=url_via_tcp_proxy, connect_timeout_ms=200)
    async with GuardedPool(settings) as pool:
        with pytest.raises(ConnectTimeoutError):
            await pool.ping()
        with pytest.raises(CircuitOpenError) as refused:
            await pool.ping()
        assert refused.value.retry_after is not None
        assert 1.5 < refused.value.retry_after <= 4  # twice the first period, its upper half
        assert proxy.accepted == 1


async def test_silence_is_one_failure_of_three_while_the_pool_has_a_session(
    proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, pool_max=2, connect_timeout_ms=200)
    async with GuardedPool(settings) as pool, pool.acquire():
        proxy.hang = True
        for _ in range(2):
            with pytest.raises(AcquireTimeoutError):
                await pool.ping()
        assert pool.stats()["circuit"] == "closed"


async def test_a_connect_that_succeeds_beside_one_that_hangs_keeps_the_circuit_closed(
    proxy: TcpProxy, url_via_tcp_proxy: str, eventually: Eventually
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, pool_max=2, connect_timeout_ms=1000)
    async with GuardedPool(settings) as pool:
        proxy.hang = True
        first = asyncio.create_task(pool.ping())
        await eventually(lambda: proxy.open_connections == 1)
        proxy.hang = False
        async with pool.acquire():  # by a second connect
            await first
            with pytest.raises(ConnectTimeoutError):
                await pool.ping(timeout=0.6)
            assert pool.stats()["circuit"] == "closed"


async def test_a_full_server_keeps_the_circuit_open_for_twice_as_long(server: Cluster, role: str, url: str) -> None:
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1)) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        with pytest.raises(CircuitOpenError) as refused:
            await pool.ping()
        assert refused.value.retry_after is not None
        assert 1.5 < refused.value.retry_after <= 4


@pytest.mark.parametrize("pool_max", [1, 5])
@pytest.mark.slow
async def test_nobody_connects_behind_an_open_circuit(
    proxy: TcpProxy,
    url_via_tcp_proxy: str,
    observer: Observer,
    role: str,
    pool_max: int,
    eventually: Eventually,
) -> None:
    settings = DatabaseSettings(
        url=url_via_tcp_proxy, pool_max=pool_max, breaker_fail_max=1, breaker_reset_timeout_ms=5000
    )
    async with GuardedPool(settings) as pool:
        await pool.ping()
        proxy.refuse = True
        await observer.terminate(user=role)  # asyncpg alone would now connect in the background, again and again
        await eventually(lambda: proxy.open_connections == 0)
        with pytest.raises(DatabaseUnavailableError):
            await pool.ping()
        assert pool.stats()["circuit"] == "open"
        assert await quiet(proxy, 1.5)
        with pytest.raises(CircuitOpenError):
            await pool.ping()
        assert await quiet(proxy, 0.1)


@pytest.mark.parametrize("pool_max", [1, 5])
@pytest.mark.slow
async def test_nobody_connects_when_nobody_asks(
    proxy: TcpProxy,
    url_via_tcp_proxy: str,
    observer: Observer,
    role: str,
    pool_max: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=pool_max)) as pool:
        await pool.ping()
        accepted = proxy.accepted
        await observer.terminate(user=role)
        end = time.monotonic() + 1.5  # asyncpg's first retry comes after one second
        while time.monotonic() < end:
            assert proxy.accepted == accepted
            await asyncio.sleep(0.02)
        assert caplog.records == []
        assert await pool.fetchval("SELECT 1") == 1


async def test_nobody_connects_for_callers_who_have_left(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        for _ in range(5):
            asked = asyncio.create_task(pool.ping())
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
        assert await quiet(proxy, 0.1)
        assert proxy.accepted == 0
        assert_accounts_balance(pool)


async def test_whoever_queues_when_the_circuit_opens_is_refused_too(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    proxy.hang = True
    settings = DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1, connect_timeout_ms=300)
    async with GuardedPool(settings) as pool:
        outcomes = await asyncio.gather(*(pool.ping(timeout=5.0) for _ in range(50)), return_exceptions=True)
        assert isinstance(outcomes[0], ConnectFailedError)
        assert {type(outcome) for outcome in outcomes[1:]} == {CircuitOpenError}
        assert proxy.accepted == 1
        assert pool.stats()["waiting"] == 0
        assert_accounts_balance(pool)


async def test_a_caller_who_gets_a_session_after_the_circuit_opened_is_refused(url: str) -> None:
    settings = DatabaseSettings(url=url, breaker_fail_max=1, session_reset="never")
    async with GuardedPool(settings) as pool:
        acquisition = pool.acquire()
        await acquisition.__aenter__()
        waiting = asyncio.create_task(pool.ping(timeout=5.0))
        await asyncio.sleep(0)
        lost = asyncpg.ConnectionDoesNotExistError("The session is lost.")
        await acquisition.__aexit__(type(lost), lost, None)
        with pytest.raises(CircuitOpenError):
            await waiting
        await at_rest(pool)
        assert pool.stats()["idle"] == 1
        assert_accounts_balance(pool)


async def test_a_session_that_comes_with_the_news_of_an_open_circuit_goes_back(url: str) -> None:
    settings = DatabaseSettings(url=url, pool_max=2, breaker_fail_max=1, session_reset="never")
    async with GuardedPool(settings) as pool:
        first, second = pool.acquire(), pool.acquire()
        await first.__aenter__()
        await second.__aenter__()
        waiting = asyncio.create_task(pool.ping())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # the session is the waiting caller's, who has not run since
        lost = asyncpg.ConnectionDoesNotExistError("The session is lost.")
        await second.__aexit__(type(lost), lost, None)
        with pytest.raises(CircuitOpenError):
            await waiting
        await at_rest(pool)
        assert pool.stats()["idle"] == 2


@pytest.mark.slow
async def test_connects_in_progress_end_when_the_circuit_opens(
    proxy: TcpProxy, url_via_tcp_proxy: str, eventually: Eventually
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, pool_max=3, breaker_fail_max=1, connect_timeout_ms=3000)
    async with GuardedPool(settings) as pool:
        await pool.ping()
        proxy.drop_all()
        await eventually(lambda: proxy.open_connections == 0)
        proxy.hang = True
        callers = [asyncio.create_task(pool.ping(timeout=1.6)) for _ in range(3)]
        await eventually(lambda: proxy.open_connections == 3)
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectTimeoutError, CircuitOpenError, CircuitOpenError]
        await eventually(lambda: proxy.open_connections == 0, within=0.5)
        assert_accounts_balance(pool)


async def test_half_open_admits_one_of_fifty(
    proxy: TcpProxy, url_via_tcp_proxy: str, later: Callable[[float], None]
) -> None:
    proxy.refuse = True
    settings = DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1, connect_timeout_ms=500)
    async with GuardedPool(settings) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        later(10)
        proxy.refuse = False
        proxy.hang = True
        accepted = proxy.accepted
        outcomes = await asyncio.gather(*(pool.ping() for _ in range(50)), return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds.count(CircuitOpenError) == 49
        assert sum(issubclass(kind, ConnectFailedError) for kind in kinds) == 1
        assert proxy.accepted == accepted + 1
        proxy.hang = False
        later(20)  # the period has doubled
        await pool.ping()
        assert pool.stats()["circuit"] == "closed"
        assert_accounts_balance(pool)


async def test_a_cancelled_trial_frees_its_place_at_once(
    proxy: TcpProxy, url_via_tcp_proxy: str, later: Callable[[float], None]
) -> None:
    proxy.refuse = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1)) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        later(10)
        proxy.refuse = False
        proxy.latency = 0.02
        trial = asyncio.create_task(pool.ping())
        await asyncio.sleep(0.01)
        with pytest.raises(CircuitOpenError):
            await pool.ping()
        trial.cancel()
        await asyncio.wait([trial])
        await pool.ping()
        assert pool.stats()["circuit"] == "closed"


async def test_a_stuck_trial_frees_its_place_when_its_lease_ends(
    proxy: TcpProxy, url_via_tcp_proxy: str, later: Callable[[float], None]
) -> None:
    proxy.refuse = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=2, breaker_fail_max=1)) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        later(10)
        proxy.refuse = False
        async with pool.acquire():  # and now the trial does something else for a long time
            with pytest.raises(CircuitOpenError) as refused:
                await pool.ping()
            assert refused.value.retry_after is not None
            assert 0 < refused.value.retry_after <= 5  # CONNECT_TIMEOUT_MS and COMMAND_TIMEOUT_MS
            later(refused.value.retry_after)
            await pool.ping()
            assert pool.stats()["circuit"] == "closed"


async def test_callers_with_little_time_of_their_own_do_not_open_the_circuit(
    proxy: TcpProxy, url_via_tcp_proxy: str, eventually: Eventually
) -> None:
    proxy.hang = True
    settings = DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1, connect_timeout_ms=2000)
    async with GuardedPool(settings) as pool:
        for _ in range(3):
            with pytest.raises(AcquireTimeoutError):
                await pool.ping(timeout=0.02)
        await eventually(lambda: proxy.open_connections == 0, within=1.0, but="the connect that nobody wants is over")
        assert (pool.stats()["circuit"], proxy.accepted) == ("closed", 1)


@pytest.mark.parametrize("trial", [False, True])
async def test_a_connect_that_hangs_does_not_hold_up_a_caller_who_came_after_those_who_began_it(
    proxy: TcpProxy, url_via_tcp_proxy: str, trial: bool, later: Callable[[float], None]
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1)) as pool:
        if trial:
            proxy.refuse = True
            with pytest.raises(DatabaseUnavailableError):
                await pool.ping()
            proxy.refuse = False
            later(10)
        proxy.hang = True
        first = asyncio.create_task(pool.ping())
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.wait([first])
        proxy.hang = False
        started = time.monotonic()
        await pool.ping()
        assert time.monotonic() - started < 1.0
        assert pool.stats()["circuit"] == "closed"


async def test_a_late_failure_from_before_a_recovery_harms_nobody_who_waits(
    url_via_tcp_proxy: str, later: Callable[[float], None]
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, pool_max=2, breaker_fail_max=1, session_reset="never")
    lost = asyncpg.ConnectionDoesNotExistError("The session is lost.")
    async with GuardedPool(settings) as pool:
        early, tripping = pool.acquire(), pool.acquire()
        await early.__aenter__()
        await tripping.__aenter__()
        await tripping.__aexit__(type(lost), lost, None)
        assert pool.stats()["circuit"] == "open"
        later(10)
        await pool.ping()
        assert pool.stats()["circuit"] == "closed"
        async with pool.acquire():
            waiting = asyncio.create_task(pool.ping(timeout=1.0))
            await asyncio.sleep(0)
            assert pool.stats()["waiting"] == 1
            await early.__aexit__(type(lost), lost, None)
            await waiting
        assert pool.stats()["circuit"] == "closed"

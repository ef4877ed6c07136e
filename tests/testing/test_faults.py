"""`open_circuit`, `database_down`, `recorded`, `WatchedPool`: what happens to a pool, and what is told of it."""

from __future__ import annotations

import asyncio
import inspect

import asyncpg
import pytest

from asyncdb_guard import (
    CircuitOpenError,
    ConnectFailedError,
    Connection,
    DatabaseSettings,
    GuardedPool,
    TriggerFailedError,
)
from asyncdb_guard.call_site import caller
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.testing import (
    BorrowLeftOpenError,
    ManualClock,
    Observer,
    TcpProxy,
    WatchedPool,
    database_down,
    open_circuit,
    recorded,
    token_event,
)
from asyncdb_guard.testing.pools.inside import breaker_of, credentials_of, cut_off, loop_of, own_settings
from tests.support.eventually import Eventually


async def test_an_open_circuit_refuses_without_a_packet_and_closes_in_the_end(
    url_via_tcp_proxy: str, proxy: TcpProxy
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        with recorded(pool) as events, open_circuit(pool):
            with pytest.raises(CircuitOpenError) as refusal:
                await pool.fetchval("SELECT 1")
            assert refusal.value.retry_after is not None
            assert 0 < refusal.value.retry_after <= pool.settings.breaker_reset_timeout
            assert pool.stats()["circuit"] == "open"
        assert proxy.accepted == 0
        assert events.names == ["circuit_opened", "circuit_rejected", "circuit_half_opened", "circuit_closed"]
        assert await pool.fetchval("SELECT 1") == 1


async def test_an_open_circuit_lets_a_trial_through_when_its_time_has_come(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with ManualClock() as clock, open_circuit(pool):
            with pytest.raises(CircuitOpenError):
                await pool.ping()
            clock.advance(60)
            await pool.ping()
            assert pool.stats()["circuit"] == "closed"


async def test_a_circuit_that_was_open_stays_open(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with open_circuit(pool):
            with open_circuit(pool):
                pass
            assert pool.stats()["circuit"] == "open"
        assert pool.stats()["circuit"] == "closed"


async def test_a_database_that_is_down_loses_sessions_and_refuses_connects(
    url: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    settings = DatabaseSettings(url=url, pool_max=2)
    async with GuardedPool(settings) as pool, GuardedPool(DatabaseSettings(url=url)) as other:
        await pool.ping()
        async with pool.acquire() as conn:
            with database_down(pool):
                with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
                    await conn.fetchval("SELECT 1")
                with pytest.raises(ConnectFailedError) as failure:
                    await pool.ping()
                assert isinstance(failure.value.__cause__, ConnectionRefusedError)
                await other.ping()
                for _ in range(settings.breaker_fail_max):
                    with pytest.raises((ConnectFailedError, CircuitOpenError)):
                        await pool.ping()
                assert pool.stats()["circuit"] == "open"
        assert pool.stats()["circuit"] == "closed"
        assert await pool.fetchval("SELECT 1") == 1


async def test_a_pool_with_the_same_settings_is_not_down(url: str) -> None:
    settings = DatabaseSettings(url=url)
    async with GuardedPool(settings) as pool, GuardedPool(settings) as other:
        await pool.ping()
        for _ in range(2):
            with database_down(pool):
                with pytest.raises(ConnectFailedError):
                    await pool.ping()
                await other.ping()
            await pool.ping()
        with database_down(other):
            await pool.ping()
            with pytest.raises(ConnectFailedError):
                await other.ping()
        assert pool.settings == other.settings == settings


async def test_a_pool_that_was_never_used_can_be_down_and_downs_can_be_nested(url: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    with database_down(pool):
        with database_down(pool), pytest.raises(ConnectFailedError):
            await pool.ping()
        with pytest.raises(ConnectFailedError):
            await pool.ping()
    await pool.ping()
    await pool.close()


@pytest.mark.parametrize("fault", [open_circuit, database_down])
async def test_what_a_trigger_does_then(url: str, fault: type[open_circuit]) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        deny = CognitoTriggers(pool, claims="SELECT 1 AS one")
        unchanged = CognitoTriggers(pool, claims="SELECT 1 AS one", on_unavailable="unchanged")
        with fault(pool):
            with pytest.raises(TriggerFailedError):
                await deny.load_claims(token_event())
            event = token_event()
            assert await unchanged.load_claims(event) == event
        assert (await deny.load_claims(token_event()))["response"] != event["response"]


async def test_a_recording_ends_with_its_block(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with recorded(pool) as events, recorded(pool) as same:
            await pool.ping()
        assert events.names == same.names == ["connection_opened"]
        assert events[0].seconds > 0  # type: ignore[attr-defined]
        await pool.disconnect()
        await pool.ping()
        assert events.names == ["connection_opened"]
        pool.events.remove(print)


async def test_a_watched_pool_knows_who_has_its_connections(url: str, eventually: Eventually) -> None:
    async with WatchedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        async with pool.acquire():
            line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
            assert pool.left_open == [
                f"tests/testing/test_faults.py:{line} in test_a_watched_pool_knows_who_has_its_connections"
            ]
        running = asyncio.create_task(pool.fetchval("SELECT 1 FROM pg_sleep(0.02)"))
        await eventually(lambda: pool.left_open, every=0)
        assert pool.left_open[0].startswith("asyncdb_guard/pool/guarded_pool.py:")  # nothing is outside of it
        await running
        assert pool.left_open == []
        with pytest.raises(BorrowLeftOpenError, match=r"^A connection was not returned .* Borrowed at: a\.py:1 in b"):
            raise BorrowLeftOpenError(["a.py:1 in b"])
        assert str(BorrowLeftOpenError(["a", "b"])).startswith("2 connections were")


async def test_a_connection_that_was_forgotten_is_still_told(url: str) -> None:
    async def prepare(conn: Connection) -> None:
        await conn.execute("SET app.tenant = 'of init'")

    async with WatchedPool(DatabaseSettings(url=url), init=prepare) as pool:
        await pool.acquire()
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        for _ in range(10):  # each may be where the forgotten one was in memory
            assert await pool.fetchval("SHOW app.tenant") == "of init"
        assert [place.partition(" in ")[0] for place in pool.left_open] == [f"tests/testing/test_faults.py:{line}"]


def test_a_place_elsewhere_has_its_whole_path(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert caller().startswith(f"{__file__}:")


async def test_each_private_name_that_is_used_is_still_there(url: str) -> None:
    """Where this fails, a name of the pool's has changed that `asyncdb_guard/testing/pools/inside.py` uses."""
    pool = GuardedPool(DatabaseSettings(url=url))
    assert loop_of(pool) is None
    cut_off(pool)
    assert credentials_of(pool) is None
    assert breaker_of(pool).state == "closed"
    await pool.ping()
    assert loop_of(pool) is asyncio.get_running_loop()
    cut_off(pool)
    cut_off(pool)
    await pool.ping()
    assert pool.stats()["replaced"] == 1
    given = pool.settings
    assert own_settings(pool) is pool.settings is not given
    await pool.close()
    assert loop_of(pool) is None

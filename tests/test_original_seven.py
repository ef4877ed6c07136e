"""The seven promises with which it began."""

from __future__ import annotations

import time

import pytest

from asyncdb_guard import CircuitOpenError, ConnectFailedError, ConnectTimeoutError, DatabaseSettings, GuardedPool
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.events import Event
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy


async def test_pool_max_is_1(monkeypatch: pytest.MonkeyPatch, url: str, observer: Observer, role: str) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url)
    async with GuardedPool() as pool:
        assert pool.settings.pool_max == 1
        await pool.ping()
        assert await observer.count(user=role) == 1


async def test_connect_timeout(monkeypatch: pytest.MonkeyPatch, url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    proxy.hang = True
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url_via_tcp_proxy)
    monkeypatch.setenv("LAMBDA_DATABASE_CONNECT_TIMEOUT_MS", "100")
    async with GuardedPool() as pool:
        started = time.monotonic()
        with pytest.raises(ConnectTimeoutError):
            await pool.ping()
        assert 0.09 < time.monotonic() - started < 1.5


async def test_proxy_host_override(
    monkeypatch: pytest.MonkeyPatch, server: Cluster, role: str, proxy: TcpProxy
) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", f"postgresql://{role}@127.0.0.1:1/postgres")
    monkeypatch.setenv("LAMBDA_DATABASE_PROXY_HOST", f"{proxy.host}:{proxy.port}")
    async with GuardedPool() as pool:
        assert await pool.fetchval("SELECT 1") == 1
        assert proxy.accepted == 1


async def test_client_caching(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        pids = {await pool.fetchval("SELECT pg_backend_pid()") for _ in range(5)}
        assert len(pids) == 1


async def test_breaker_trips(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    proxy.refuse = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        for _ in range(3):
            assert pool.stats()["circuit"] == "closed"
            with pytest.raises(ConnectFailedError):
                await pool.ping()
        assert pool.stats()["circuit"] == "open"


async def test_fail_fast(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    proxy.refuse = True
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, breaker_fail_max=1)) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(CircuitOpenError):
                await pool.ping()
        assert time.monotonic() - started < 1.0
        assert proxy.accepted == 1


async def test_cache_miss(url: str) -> None:
    heard: list[Event] = []
    async with GuardedPool(DatabaseSettings(url=url), on_event=heard.append) as pool:
        triggers = CognitoTriggers(pool, claims="SELECT 'admin' AS role")
        event = {
            "version": "2",
            "triggerSource": "TokenGeneration_Authentication",
            "region": "eu-west-1",
            "userPoolId": "eu-west-1_pool",
            "userName": "somebody",
            "callerContext": {"awsSdkVersion": "1", "clientId": "client"},
            "request": {"userAttributes": {"sub": "6f1c4b8e-0000-4000-8000-000000000001"}, "scopes": []},
            "response": {},
        }
        for _ in range(3):
            answer = await triggers.load_claims(event)
            details = answer["response"]["claimsAndScopeOverrideDetails"]
            assert details["idTokenGeneration"]["claimsToAddOrOverride"] == {"role": "admin"}
        assert [event.name for event in heard if event.name.startswith("cache")] == [
            "cache_miss",
            "cache_hit",
            "cache_hit",
        ]

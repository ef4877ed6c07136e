"""What a process learns about the startup parameters that it sends: refused, stricter, swallowed."""

from __future__ import annotations

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

OURS = (
    "idle_session_timeout", "idle_in_transaction_session_timeout", "client_connection_check_interval",
    "statement_timeout",
)  # fmt: skip


def refusal(sqlstate: str, text: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"S": "FATAL", "C": sqlstate, "M": text})


@pytest.mark.parametrize(
    ("sqlstate", "text", "left"),
    [
        pytest.param("42704", 'unrecognized configuration parameter "idle_session_timeout"', OURS[1:], id="before 14"),
        pytest.param(
            "22023",
            'invalid value for parameter "client_connection_check_interval": 250',
            (*OURS[:2], OURS[3]),
            id="POLLRDHUP",
        ),
        pytest.param("08P01", "unsupported startup parameter: idle_session_timeout", (), id="PgBouncer"),
        pytest.param("0A000", "Feature not supported: RDS Proxy supports no startup parameters", (), id="RDS Proxy"),
        pytest.param("42704", "unrecognized parameter", (), id="unnamed"),
        pytest.param("XX000", "startup option statement_timeout is not allowed", OURS[:3], id="a code of its own"),
        pytest.param("42501", 'permission denied to set parameter "idle_session_timeout"', OURS[1:], id="forbidden"),
    ],
)
def test_a_refused_parameter_is_left_out_from_now_on_and_told_once(
    sqlstate: str, text: str, left: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    traits = ServerTraits(idle_timeout=60.0, command_timeout=3.0)
    assert traits.refuse(refusal(sqlstate, text))
    assert tuple(traits.parameters()) == left
    assert len(caplog.messages) == 1
    assert sqlstate in caplog.text


@pytest.mark.parametrize(
    ("sqlstate", "text"),
    [
        ("28P01", "password authentication failed"),
        ("3D000", 'database "idle_session_timeout" does not exist'),
        ("42704", 'role "app" does not exist'),
        ("53300", "too many connections"),
    ],
)
def test_another_refusal_is_not_about_our_parameters(sqlstate: str, text: str) -> None:
    traits = ServerTraits(idle_timeout=60.0, command_timeout=3.0)
    assert not traits.refuse(refusal(sqlstate, text))
    assert tuple(traits.parameters()) == OURS


def test_without_a_parameter_of_ours_there_is_nothing_to_leave_out() -> None:
    traits = ServerTraits(idle_timeout=60.0, command_timeout=3.0)
    assert traits.refuse(refusal("08P01", "unsupported startup parameter: idle_session_timeout"))
    assert not traits.refuse(refusal("08P01", "unsupported startup parameter: search_path"))


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        ("2s", 2000), ("2000", 2000), ("100ms", 100), ("1500us", 2), ("0.5min", 30_000), ("1min", 60_000),
        ("2h", 60_250), ("1d", 60_250), ("0", 60_250), ("odd", 60_250),
    ],
)  # fmt: skip
def test_the_stricter_limit_counts(value: str, milliseconds: int) -> None:
    traits = ServerTraits(idle_timeout=60.0, command_timeout=3.0)
    assert traits.respect([f"idle_session_timeout={value}", "work_mem=1MB"]) == (milliseconds < 60_250)
    assert traits.parameters()["idle_session_timeout"] == str(milliseconds)


async def test_what_the_dba_set_for_the_role_is_never_loosened(
    server: Cluster, role: str, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    limits = {OURS[0]: ("10s", 10_000), OURS[1]: ("2s", 2000), OURS[2]: ("100ms", 100), OURS[3]: ("1s", 1000)}
    for name, (text, _) in limits.items():
        server.psql(f"ALTER ROLE {role} SET {name} = '{text}'")
    setting = "SELECT setting::int FROM pg_settings WHERE name = $1"
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        for name, (_, milliseconds) in limits.items():
            assert await pool.fetchval(setting, name) == milliseconds
        assert proxy.accepted == 2  # the first connect asked
        await pool.disconnect()
        await pool.ping()
        assert proxy.accepted == 3


async def test_a_looser_limit_of_the_dba_changes_nothing(server: Cluster, role: str, url: str) -> None:
    server.psql(f"ALTER ROLE {role} SET idle_session_timeout = '1h'")
    async with GuardedPool(DatabaseSettings(url=url, idle_timeout_ms=5000)) as pool:
        assert await pool.fetchval("SHOW idle_session_timeout") == "5250ms"
        assert pool.stats()["connects"] == 1

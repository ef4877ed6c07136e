"""Two databases in one process: each has its own variables, and neither reads the other's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from asyncdb_guard import ConfigurationError, DatabaseSettings, GuardedPool

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

REPLICA = "REPLICA_DATABASE_"
URL = "postgresql://u@db.example/d"


async def test_each_reads_its_own(server: Cluster, role: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.psql(f"CREATE DATABASE {role}")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", "3")
    monkeypatch.setenv(f"{REPLICA}URL", server.url(user=role, database=role))
    monkeypatch.setenv(f"{REPLICA}COMMAND_TIMEOUT_MS", "900")
    async with GuardedPool() as main, GuardedPool(DatabaseSettings.from_env(REPLICA)) as replica:
        ask = "SELECT current_database()"
        assert await asyncio.gather(main.fetchval(ask), replica.fetchval(ask)) == ["postgres", role]
        assert (main.settings.pool_max, main.settings.command_timeout_ms) == (3, 3000)
        assert (replica.settings.pool_max, replica.settings.command_timeout_ms) == (1, 900)


def faults(prefix: str = REPLICA) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        DatabaseSettings.from_env(prefix)
    assert caught.value.__context__ is None, "pydantic's error would show the values"
    return caught.value.faults


def test_nothing_else_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("LAMBDA_DATABASE_URL", URL)
    (fault,) = faults()
    assert fault.startswith("No database URL: set REPLICA_DATABASE_URL to postgresql://")


def test_it_is_as_strict_and_names_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{REPLICA}URL", f"{URL}?connection_limit=2")
    monkeypatch.setenv(f"{REPLICA}POOL_MX", "2")
    monkeypatch.setenv(f"{REPLICA}POOL_MAX", "5")
    monkeypatch.setenv(f"{REPLICA}COMMAND_TIMEOUT_MS", "soon")
    monkeypatch.setenv("LAMBDA_DATABASE_NONSENSE", "of the main one")
    told = "\n".join(faults())
    assert "REPLICA_DATABASE_POOL_MX is not a setting; the nearest is REPLICA_DATABASE_POOL_MAX." in told
    assert "command_timeout_ms (REPLICA_DATABASE_COMMAND_TIMEOUT_MS) must be" in told
    assert "contradicts pool_max (REPLICA_DATABASE_POOL_MAX)" in told
    assert len(faults()) == 3
    assert "LAMBDA" not in told


@pytest.mark.parametrize("prefix", ["", "REPLICA", "replica_", "_", "REPLICA-DB_"])
def test_a_prefix_has_a_form(prefix: str) -> None:
    assert faults(prefix) == (
        "The prefix of from_env() must be in upper case and end with an underscore, as in REPLICA_DATABASE_.",
    )


SAYS_WHERE = {
    "proxy_host": "proxy.example",
    "proxy_profile": "true",
    "secret_arn": "arn:aws:secretsmanager:eu-west-1:1:secret:s",
    "iam_auth": "true",
    "ssl_root_cert": "/ca.pem",
}


@pytest.mark.parametrize("setting", SAYS_WHERE)
def test_a_url_in_code_is_not_sent_through_the_main_databases_proxy(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LAMBDA_DATABASE_{setting.upper()}", SAYS_WHERE[setting])
    with pytest.raises(ConfigurationError) as caught:
        DatabaseSettings(url="postgresql://db.example/d" if setting == "secret_arn" else URL, pool_max=0)
    mixed, other = caught.value.faults
    assert mixed.startswith(f"url is given in code, and LAMBDA_DATABASE_{setting.upper()} in the environment")
    assert f"pass {setting}= in code" in mixed
    assert 'from_env("OTHER_DATABASE_")' in mixed
    assert SAYS_WHERE[setting] not in mixed.replace("true", "")
    assert "pool_max" in other

    none = {"iam_auth": False}.get(setting)
    assert DatabaseSettings(**{"url": URL, setting: none}).target.host == "db.example"

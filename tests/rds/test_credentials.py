"""Who decides on the login: the URL, the settings, or a provider of the user's own."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import replace

import pytest
from pydantic import SecretStr

from asyncdb_guard import ConfigurationError, ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.connect.aws.iam import IamCredentials
from asyncdb_guard.connect.aws.secrets_manager import SecretsManagerCredentials
from asyncdb_guard.connect.credentials import FixedCredentials, credentials_for
from asyncdb_guard.settings.target import ConnectTarget
from asyncdb_guard.testing.postgres.observer import Observer

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:signup-AbCdEf"
URL = "postgresql://app@db.example/app"


@pytest.mark.parametrize("port", [None, 1])
async def test_a_failed_login_leaves_no_password_in_the_variables_of_any_frame(guarded_server, user, port):
    address = f"{guarded_server.host}:{port or guarded_server.port}"
    url = f"postgresql://{user}:zz-wrong-word@{address}/postgres?sslmode=disable"
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with pytest.raises(ConnectFailedError) as caught:
            await pool.ping()
    report = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "asyncpg" in report
    assert "zz-wrong-word" not in report.replace(url, "")


class Vault:
    """A user's own provider: a list of passwords, the next one when one was refused."""

    def __init__(self, *passwords: str) -> None:
        self.passwords = list(passwords)
        self.refused: list[ConnectTarget | None] = []

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        self.refused.append(refused)
        if refused is not None:
            self.passwords.pop(0)
        return replace(target, password=SecretStr(self.passwords[0]))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (DatabaseSettings(url=URL), FixedCredentials),
        (DatabaseSettings(url=URL, iam_auth=True), IamCredentials),
        (DatabaseSettings(secret_arn=ARN), SecretsManagerCredentials),
    ],
    ids=["fixed", "iam", "secret"],
)
def test_the_settings_choose_the_provider(settings, kind):
    assert type(credentials_for(settings)) is kind


@pytest.mark.parametrize("settings", [DatabaseSettings(url=URL, iam_auth=True), DatabaseSettings(secret_arn=ARN)])
async def test_a_provider_and_a_setting_that_asks_for_another_are_refused(settings):
    pool = GuardedPool(settings, credentials=Vault())
    with pytest.raises(ConfigurationError, match="and credentials= of GuardedPool exclude each other"):
        await pool.ping()


@pytest.fixture
def user(guarded_server):
    guarded_server.psql("DROP ROLE IF EXISTS keeper; CREATE ROLE keeper LOGIN PASSWORD 'second'")
    return "keeper"


async def test_a_password_of_libpqs_own_variable_or_file_is_not_sent(guarded_server, user, monkeypatch, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("*:*:*:*:second\n")
    passwords.chmod(0o600)
    for name, value in (("PGPASSFILE", str(passwords)), ("PGPASSWORD", "second")):
        monkeypatch.setenv(name, value)
        async with GuardedPool(DatabaseSettings(url=guarded_server.url(user=user))) as pool:
            with pytest.raises(ConnectFailedError, match="the settings have none"):
                await pool.ping()


async def test_a_refused_login_is_tried_once_more_with_what_the_provider_then_says(guarded_server, user):
    vault = Vault("first", "second")
    settings = DatabaseSettings(url=guarded_server.url(user=user))
    async with GuardedPool(settings, credentials=vault) as pool:
        assert await pool.fetchval("SELECT current_user") == user
        assert pool.stats()["connect_failures"] == 0
    first, second = vault.refused
    assert first is None
    assert second.password.get_secret_value() == "first"


async def test_it_is_tried_once_more_and_not_twice(guarded_server, user):
    vault = Vault("first", "wrong", "second")
    settings = DatabaseSettings(url=guarded_server.url(user=user), breaker_fail_max=1)
    async with GuardedPool(settings, credentials=vault) as pool:
        with pytest.raises(ConnectFailedError, match="also with newly fetched credentials"):
            await pool.ping()
        assert len(vault.refused) == 2
        assert pool.stats()["circuit"] == "open"


async def test_a_wrong_password_in_the_url_is_tried_once_and_is_no_failure(guarded_server, user):
    settings = DatabaseSettings(url=guarded_server.url(user=user, password="wrong"), breaker_fail_max=1)
    async with GuardedPool(settings) as pool:
        with pytest.raises(ConnectFailedError, match=r"refused the password; .* \(SQLSTATE 28P01\)"):
            await pool.ping()
        assert pool.stats()["circuit"] == "closed"
    assert guarded_server.log.count('password authentication failed for user "keeper"') > 0


async def test_a_provider_may_leave_its_sessions_without_a_name(url, role, observer):
    class Nameless:
        async def complete(self, target, *, refused=None):
            return replace(target, application_name=None)

    async with GuardedPool(DatabaseSettings(url=url), credentials=Nameless()) as pool:
        await pool.ping()
        (session,) = await observer.sessions(user=role)
        assert session["application_name"] == ""


async def test_a_provider_that_hangs_is_bounded(server, url):
    class Hangs:
        async def complete(self, target, *, refused=None):
            await asyncio.Event().wait()

    async with GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=100), credentials=Hangs()) as pool:
        async with asyncio.timeout(5.0):
            with pytest.raises(ConnectFailedError, match="did not answer in time"):
                await pool.ping()


async def test_old_sessions_go_so_that_a_new_password_is_used(guarded_server, user, later):
    """MAX_LIFETIME_MS leaves rotated credentials behind, with no error in between."""
    vault = Vault("second")
    settings = DatabaseSettings(url=guarded_server.url(user=user), max_lifetime_ms=20_000)
    observer = Observer(guarded_server)
    async with GuardedPool(settings, credentials=vault) as pool:
        first = await pool.fetchval("SELECT pg_backend_pid()")
        guarded_server.psql("ALTER ROLE keeper PASSWORD 'third'")
        vault.passwords[:] = ["third"]
        later(22)
        assert await pool.fetchval("SELECT pg_backend_pid()") != first
        assert await observer.count(user=user) == 1
    await observer.close()
    assert vault.refused == [None, None]

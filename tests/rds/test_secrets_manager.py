"""Credentials from Secrets Manager: kept, fetched anew when the server refuses them, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
import uuid
from typing import Any

import boto3.session
import pytest

from asyncdb_guard import ConfigurationError, ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.connect.aws.secrets_manager import SecretsManagerCredentials
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.rds.conftest import REGION, SecretsManager
from tests.support.program import run

MISSING = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:nothing-AbCdEf"
PASSWORD = "s3cr3t-w0rd"
NOWHERE = ("127.0.0.1", 1)
"""What a proxy that hangs never dials."""


@pytest.fixture
def login(guarded_server: Cluster) -> dict[str, Any]:
    """A new role, as RDS writes it into a secret."""
    user = f"test_{uuid.uuid4().hex[:12]}"
    guarded_server.psql(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
    return {
        "engine": "postgres", "username": user, "password": PASSWORD,
        "host": guarded_server.host, "port": guarded_server.port, "dbname": "postgres",
    }  # fmt: skip


def settings(arn: str, **knobs: Any) -> DatabaseSettings:
    return DatabaseSettings(**{"secret_arn": arn, "sslmode": "disable", "connect_timeout_ms": 10_000, **knobs})


def rotate(server: Cluster, manager: SecretsManager, arn: str, login: dict[str, Any], password: str) -> None:
    """What a rotation function does: first the server, then the secret."""
    server.psql(f"ALTER ROLE {login['username']} PASSWORD '{password}'")
    manager.put(arn, login | {"password": password})


# What it gives


async def test_the_secret_alone_is_enough_to_connect(secrets_manager, login):
    async with GuardedPool(settings(secrets_manager.create(login))) as pool:
        assert await pool.fetchval("SELECT current_user") == login["username"]
    assert secrets_manager.fetches == 1


async def test_it_is_fetched_once_however_many_connect(secrets_manager, login):
    async with GuardedPool(settings(secrets_manager.create(login), pool_max=4)) as pool:
        await asyncio.gather(*(pool.ping() for _ in range(8)))
        await pool.disconnect()
        await pool.ping()
    assert secrets_manager.fetches == 1


def test_it_is_kept_over_event_loops(secrets_manager, login):
    pool = GuardedPool(settings(secrets_manager.create(login)))
    for _ in range(2):
        asyncio.run(pool.ping())
    assert secrets_manager.fetches == 1


@pytest.mark.parametrize("port", [None, 5433, "5433"])
async def test_the_url_beats_the_secret(secrets_manager, login, port):
    arn = secrets_manager.create(login | {"port": port, "host": "elsewhere.invalid", "dbname": "elsewhere"})
    wanted = DatabaseSettings(url="postgresql://db.example:6000/app", secret_arn=arn).target
    target = await SecretsManagerCredentials(arn, 5.0).complete(wanted)
    assert (target.host, target.port, target.database) == ("db.example", 6000, "app")
    assert (target.user, target.password.get_secret_value()) == (login["username"], PASSWORD)


@pytest.mark.parametrize(("port", "read"), [(None, 5432), (5433, 5433), ("5433", 5433)])
async def test_what_the_url_leaves_open_comes_from_the_secret(secrets_manager, port, read):
    arn = secrets_manager.create({"username": "u", "password": "p", "host": "db.example", "port": port})
    target = await SecretsManagerCredentials(arn, 5.0).complete(DatabaseSettings(secret_arn=arn).target)
    assert (target.host, target.port, target.database) == ("db.example", read, "u")


async def completed(secrets_manager, secret: dict[str, Any]) -> Any:
    arn = secrets_manager.create({"username": "u", "password": "p"} | secret)
    return await SecretsManagerCredentials(arn, 5.0).complete(DatabaseSettings(secret_arn=arn).target)


@pytest.mark.parametrize(
    ("secret", "host", "port"),
    [
        ({"host": "db.example:6000"}, "db.example", 6000),
        ({"host": "db.example:6000", "port": 6000}, "db.example", 6000),
        ({"host": "db.example:6000", "port": "06000"}, "db.example", 6000),
        ({"host": "[2001:db8::1]:6000"}, "2001:db8::1", 6000),
        ({"host": "[2001:db8::1]", "port": 6000}, "2001:db8::1", 6000),
        ({"host": "2001:db8::1"}, "2001:db8::1", 5432),
        ({"host": "::1", "port": 6000}, "::1", 6000),
        ({"host": "10.0.0.7"}, "10.0.0.7", 5432),
    ],
)
async def test_a_host_may_have_its_port_with_it(secrets_manager, secret, host, port):
    target = await completed(secrets_manager, secret)
    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    "names",
    [{"database": "app"}, {"dbname": "app"}, {"database": "app", "dbname": "app"}, {"database": "app", "dbname": ""}],
)
async def test_a_database_has_either_name(secrets_manager, names):
    assert (await completed(secrets_manager, {"host": "h"} | names)).database == "app"


@pytest.mark.parametrize("engine", [None, "", "postgres", "postgresql", "aurora-postgresql", "PostgreSQL"])
async def test_an_engine_that_is_postgres_is_accepted(secrets_manager, engine):
    assert (await completed(secrets_manager, {"host": "h", "engine": engine})).host == "h"


async def test_a_root_logger_at_debug_shows_no_secret(secrets_manager, guarded_server, login, caplog):
    arn = secrets_manager.create(login)
    caplog.set_level(logging.DEBUG)
    async with GuardedPool(settings(arn)) as pool:
        await pool.ping()
    assert PASSWORD not in caplog.text
    caplog.clear()
    boto3.session.Session().client("secretsmanager", region_name=REGION)
    assert "botocore" in caplog.text  # everybody else's records are where they were


async def test_keys_that_are_not_used_are_named_once(secrets_manager, guarded_server, login, caplog):
    arn = secrets_manager.create(
        login | {"sslMode": PASSWORD, "dbInstanceIdentifier": "x", "masterarn": "y", "no word": 1}
    )
    async with GuardedPool(settings(arn)) as pool:
        await pool.ping()
        rotate(guarded_server, secrets_manager, arn, login | {"sslMode": PASSWORD}, "another word")
        await pool.disconnect()
        await pool.ping()
    told = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert told == [
        (
            "The secret of secret_arn (LAMBDA_DATABASE_SECRET_ARN) has keys that are not used: sslMode, 1 more. Used"
            " are username, password, host, port, dbname, database, engine. Correct or remove the others."
        )
    ]
    assert secrets_manager.fetches == 2
    assert PASSWORD not in caplog.text


# Rotation


async def test_a_rotation_under_a_warm_environment_goes_unnoticed(secrets_manager, guarded_server, login):
    arn = secrets_manager.create(login)
    observer = Observer(guarded_server)
    events: list[str] = []
    async with GuardedPool(settings(arn), on_event=lambda event: events.append(event.name)) as pool:
        await pool.ping()
        rotate(guarded_server, secrets_manager, arn, login, "another word")
        assert await observer.terminate(user=login["username"]) == 1
        assert await pool.fetchval("SELECT 1") == 1
        assert secrets_manager.fetches == 2
        assert events == ["connection_opened", "connection_replaced", "connection_opened"]
        assert pool.stats()["connect_failures"] == 0
    await observer.close()


async def test_a_warm_session_outlives_a_rotation_and_costs_no_fetch(secrets_manager, guarded_server, login):
    arn = secrets_manager.create(login)
    async with GuardedPool(settings(arn)) as pool:
        await pool.ping()
        rotate(guarded_server, secrets_manager, arn, login, "another word")
        await pool.ping()
    assert secrets_manager.fetches == 1


async def test_several_refused_at_once_share_one_fetch(secrets_manager, guarded_server, login):
    arn = secrets_manager.create(login)
    async with GuardedPool(settings(arn, pool_max=4)) as pool:
        await asyncio.gather(*(pool.execute("SELECT pg_sleep(0.1)") for _ in range(4)))
        rotate(guarded_server, secrets_manager, arn, login, "another word")
        await pool.disconnect()
        await asyncio.gather(*(pool.execute("SELECT pg_sleep(0.1)") for _ in range(4)))
        assert pool.stats()["connects"] == 8
    assert secrets_manager.fetches == 2


@pytest.mark.slow
async def test_a_login_that_is_refused_twice_is_a_failure_that_opens_the_circuit(secrets_manager, login):
    arn = secrets_manager.create(login | {"password": "wrong word"})
    async with GuardedPool(settings(arn, breaker_fail_max=2)) as pool:
        for fetches in (2, 3):
            with pytest.raises(ConnectFailedError, match="newly fetched credentials; wait for a rotation") as caught:
                await pool.ping()
            assert secrets_manager.fetches == fetches
            assert "wrong word" not in "".join(traceback.format_exception(caught.value))
        assert pool.stats()["circuit"] == "open"


# What may be wrong


async def refused(arn: str, **knobs: Any) -> Exception:
    """The error of a first call, which shows no secret, not even in the variables of its frames' tracebacks."""
    async with GuardedPool(settings(arn, **knobs)) as pool:
        with pytest.raises((ConfigurationError, ConnectFailedError)) as caught:
            await pool.ping()
        assert pool.stats()["circuit"] == "closed"
    error: BaseException | None = caught.value
    report = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert PASSWORD not in report
    assert arn not in str(error)
    return caught.value


@pytest.mark.parametrize(
    ("secret", "remedy"),
    [
        pytest.param({"username": "u", "port": PASSWORD}, "no password: add it as a JSON string", id="no-password"),
        pytest.param({"username": "u", "password": ""}, "no password: add it", id="empty-password"),
        pytest.param({"username": "u", "password": True}, "no password: add it", id="password-of-no-use"),
        pytest.param({"password": PASSWORD}, "no username: add it", id="no-username"),
        pytest.param({}, "no username and no password: add it", id="neither"),
        pytest.param([PASSWORD], "not a JSON object: store username and password in one", id="list"),
        pytest.param(PASSWORD, "not a JSON object", id="bare-text"),
        pytest.param("{" + f'"password": "{PASSWORD}"', "not a JSON object", id="malformed"),
        pytest.param({"username": "u", "password": PASSWORD}, "Add one to either", id="no-host"),
        pytest.param(
            {"username": "u", "password": PASSWORD, "port": PASSWORD}, "is not a number from 1 to 65535", id="bad-port"
        ),
        pytest.param(
            {"username": "u", "password": PASSWORD, "port": 0},
            "is not a number from 1 to 65535",
            id="port-out-of-range",
        ),
        pytest.param(
            {"username": "u", "password": PASSWORD, "host": "h:6000", "port": 6001},
            "names one port in host and another in port",
            id="two-ports",
        ),
        pytest.param(
            {"username": "u", "password": PASSWORD, "host": "h", "dbname": "a", "database": "b"},
            "names one database in dbname and another in database",
            id="two-databases",
        ),
        *(
            pytest.param(
                {"username": "u", "password": PASSWORD, "host": "h"} | field,
                "that is neither a string nor a whole number: correct or remove it",
                id=str(field),
            )
            for field in ({"host": [PASSWORD]}, {"port": 5432.5}, {"port": True}, {"dbname": {}}, {"database": []})
        ),
        *(
            pytest.param(
                {"username": "u", "password": PASSWORD, "host": host},
                "has a host that is not a name, an address, host:port or [IPv6]:port",
                id=host,
            )
            for host in ("h:port", "h:0", "h:65536", "postgresql://h/db", "[::1", "a b", "a,b")
        ),
        *(
            pytest.param(
                {"username": "u", "password": PASSWORD, "host": "h", "engine": engine},
                "is for another kind of database: use a secret whose engine is postgres",
                id=f"engine-{engine}",
            )
            for engine in ("mysql", "aurora-mysql", 5)
        ),
    ],
)
async def test_a_secret_of_no_use_says_what_to_mend(secrets_manager, secret, remedy):
    arn = secrets_manager.create(secret if isinstance(secret, str) else json.dumps(secret))
    error = await refused(arn)
    assert isinstance(error, ConfigurationError)
    assert remedy in str(error)
    assert "LAMBDA_DATABASE_SECRET_ARN" in str(error)


async def test_a_binary_secret_is_refused(secrets_manager):
    error = await refused(secrets_manager.create_binary())
    assert isinstance(error, ConfigurationError)
    assert "has no text" in str(error)


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        ("AccessDeniedException", ConfigurationError, "allow this role secretsmanager:GetSecretValue"),
        ("DecryptionFailure", ConfigurationError, "allow this role kms:Decrypt"),
        ("UnrecognizedClientException", ConfigurationError, "are not valid"),
        ("ThrottlingException", ConnectFailedError, "Try again later (ThrottlingException)"),
        ("InternalServiceError", ConnectFailedError, "Try again later (InternalServiceError)"),
    ],
)
async def test_what_aws_refuses_is_told_with_its_remedy(secrets_manager, login, code, kind, remedy):
    arn = secrets_manager.create(login)
    secrets_manager.refusal = code
    error = await refused(arn)
    assert type(error) is kind
    assert remedy in str(error)
    assert secrets_manager.fetches == 1


async def test_throttling_counts_as_a_failure_and_a_missing_right_does_not(secrets_manager, login):
    arn = secrets_manager.create(login)
    for code, state in (("AccessDeniedException", "closed"), ("ThrottlingException", "open")):
        secrets_manager.refusal = code
        async with GuardedPool(settings(arn, breaker_fail_max=1)) as pool:
            with pytest.raises((ConfigurationError, ConnectFailedError)):
                await pool.ping()
            assert pool.stats()["circuit"] == state


async def test_a_secret_that_is_deleted_or_missing_is_a_matter_of_configuration(secrets_manager, login):
    arn = secrets_manager.create(login)
    secrets_manager.delete(arn)
    assert "scheduled for deletion" in str(await refused(arn))
    assert "the region that the ARN names has no such secret" in str(await refused(MISSING))


async def test_the_arn_says_which_region_is_asked(secrets_manager, login):
    elsewhere = secrets_manager.create(login).replace(REGION, "us-east-2")
    error = await refused(elsewhere)
    assert isinstance(error, ConfigurationError)
    assert "the region that the ARN names has no such secret" in str(error)


@pytest.mark.parametrize("arn", ["sign-up", "arn:aws:rds:eu-west-1:123456789012:db:main", MISSING.upper()])
async def test_what_is_no_arn_of_a_secret_is_refused(aws, arn):
    error = await refused(arn)
    assert isinstance(error, ConfigurationError)
    assert "must have the form arn:aws:secretsmanager:region:account:secret:name" in str(error)


@pytest.mark.parametrize("suffix", [":password::", ":password:AWSCURRENT:", "::AWSPREVIOUS:", ":"])
async def test_an_arn_as_ecs_writes_it_says_what_to_remove(secrets_manager, login, suffix):
    error = await refused(secrets_manager.create(login) + suffix)
    assert isinstance(error, ConfigurationError)
    assert "Remove everything from the first colon after the secret's name" in str(error)
    assert secrets_manager.fetches == 0


async def test_an_aws_that_hangs_is_told_within_the_bound_of_a_connect(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with TcpProxy(*NOWHERE) as proxy:
        proxy.hang = True
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://{proxy.host}:{proxy.port}")
        provider = SecretsManagerCredentials(MISSING, 0.2)
        with pytest.raises(ConnectFailedError, match=r"in a VPC, add a NAT gateway.*\(ReadTimeoutError\)"):
            await provider.complete(DatabaseSettings(secret_arn=MISSING).target)
        assert proxy.accepted == 1


async def test_a_process_without_a_role_is_told_so(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    error = await refused(MISSING)
    assert isinstance(error, ConfigurationError)
    assert "Give the function a role (NoCredentialsError)" in str(error)


# The thread


async def test_a_caller_who_gave_up_leaves_the_answer_to_the_next(secrets_manager, login, eventually):
    provider = SecretsManagerCredentials(arn := secrets_manager.create(login), 5.0)
    target = DatabaseSettings(secret_arn=arn).target
    first = asyncio.create_task(provider.complete(target))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await provider.complete(target)
    await provider.complete(target)
    assert secrets_manager.fetches == 1


@pytest.mark.slow
def test_a_process_ends_although_aws_never_answers():
    with TcpProxy(*NOWHERE) as proxy:
        proxy.hang = True
        said = run(
            f"""
            import asyncio
            from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool

            async def main():
                asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is nothing to report
                pool = GuardedPool(DatabaseSettings(secret_arn={MISSING!r}, connect_timeout_ms=300_000))
                try:
                    await pool.acquire(timeout=3).__aenter__()
                except ConnectFailedError as error:
                    print(type(error).__name__)

            asyncio.run(main())
            """,
            timeout=40,
            AWS_ENDPOINT_URL_SECRETS_MANAGER=f"http://{proxy.host}:{proxy.port}",
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
        )
        assert said == "ConnectTimeoutError\n"
        assert proxy.accepted == 1


def test_a_fork_in_the_middle_of_a_fetch_fetches_its_own():
    said = run(
        f"""
        import asyncio, os, threading, warnings
        from pydantic import SecretStr
        from asyncdb_guard import DatabaseSettings
        from asyncdb_guard.connect.aws import secrets_manager

        warnings.simplefilter("ignore", DeprecationWarning)  # that the process has threads
        parent, begun, never = os.getpid(), threading.Event(), threading.Event()

        def fetch(arn, timeout):
            if os.getpid() == parent:
                begun.set()
                never.wait()
            return SecretStr('{{"username": "u", "password": "p", "host": "h"}}')

        secrets_manager._fetch_text = fetch
        target = DatabaseSettings(secret_arn={MISSING!r}).target
        provider = secrets_manager.SecretsManagerCredentials({MISSING!r}, 3.0)

        async def begin():
            asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is nothing to report
            fetching = asyncio.ensure_future(provider.complete(target))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            return fetching

        async def end():
            asyncio.get_running_loop().slow_callback_duration = 60
            await asyncio.wait_for(provider.complete(target), 10.0)

        with asyncio.Runner() as runner:
            fetching = runner.run(begin())
            if os.fork() == 0:
                asyncio.run(end())
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.wait()[1]))
            never.set()
            runner.run(asyncio.wait_for(fetching, 10.0))
        """,
        timeout=40,
    )
    assert said == "7\n"


@pytest.mark.slow
def test_without_the_extra_the_error_says_what_to_install():
    said = run(
        f"""
        import asyncio, sys
        sys.modules["boto3"] = None
        from asyncdb_guard import ConfigurationError, DatabaseSettings, GuardedPool
        try:
            asyncio.run(GuardedPool(DatabaseSettings(secret_arn={MISSING!r})).ping())
        except ConfigurationError as error:
            print(error)
        """
    )
    assert said == "Credentials from AWS need the extra aws: pip install 'asyncdb-guard[aws]'.\n"


@pytest.mark.slow
def test_boto3_is_imported_only_when_the_first_login_is_needed():
    said = run(
        f"""
        import sys
        from asyncdb_guard import DatabaseSettings, GuardedPool
        pool = GuardedPool(DatabaseSettings(secret_arn={MISSING!r}))
        print([name for name in ("boto3", "botocore") if name in sys.modules])
        """
    )
    assert said == "[]\n"

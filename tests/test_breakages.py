"""What breaks for a function's author, and what the log must then say: the remedy, in one line, with no secret.

Each row breaks one thing for real, runs a trigger, and reads the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import re
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from asyncdb_guard import GuardedPool, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers, TokenClaims
from asyncdb_guard.testing.ports import LOOPBACK, free_port
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.cognito.conftest import SUB, TABLE
from tests.cognito.events import confirmation_event, machine_event, token_event
from tests.rds.conftest import aws, guarded_server, secrets_manager  # noqa: F401 -- fixtures
from tests.support.bound import at_rest
from tests.support.pgbouncer import PgBouncer
from tests.support.speaker import message, refusal, speaker

if TYPE_CHECKING:
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

ROW = "SELECT role FROM app_user WHERE cognito_sub = $1"
INSERT = "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2) ON CONFLICT DO NOTHING"
WORD = "s3cr3t-w0rd"

PRIVATE = (SUB, WORD, "ada@example.com", "Traceback", "site-packages", "asyncpg/")
"""What no line of a log may contain."""


@dataclass
class Lab:
    """A server with a table, and the means to break things."""

    server: Cluster
    guarded: Cluster
    role: str
    proxy: TcpProxy
    directory: Path
    arn: str
    ends: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        return self.server.url(user=self.role)

    @property
    def via_proxy(self) -> str:
        return self.server.url(user=self.role, port=self.proxy.port)

    async def speaker(self, sqlstate: str, text: str) -> str:
        return await self.ends.enter_async_context(speaker(refusal(sqlstate, text)))

    async def tls(self, *, name: str = LOOPBACK, expired: bool = False, said: bytes = b"") -> tuple[str, str]:
        """A TLS server with a certificate for `name`, which says `said`: its URL, and the file of its CA."""
        return await self.ends.enter_async_context(tls_server(self.directory, name, expired=expired, said=said))


@asynccontextmanager
async def tls_server(directory: Path, name: str, *, expired: bool, said: bytes) -> AsyncIterator[tuple[str, str]]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    authority.issue_cert(name, not_after=past if expired else None).configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
            await reader.read(4096)
            writer.write(said)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    async with server:
        yield f"postgresql://user@{LOOPBACK}:{server.sockets[0].getsockname()[1]}/db", str(directory / "ca.pem")


Settings = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One breakage."""

    name: str
    says: tuple[str, ...]
    """What the log must say, each part anywhere in one of its lines."""
    settings: Callable[[Lab], Any] = lambda lab: {"url": lab.url}
    """The settings, or a coroutine that breaks something and returns them."""
    claims: Any = ROW
    provision: Any = None
    """With one, the trigger is post confirmation."""
    event: Callable[[], dict[str, Any]] | None = None
    answered: bool = False
    """Whether the trigger answers all the same."""
    before: Callable[[Lab, GuardedPool], Any] | None = None
    """Breaks something once the pool has its session."""


def urls(**parts: Any) -> Callable[[Lab], Settings]:
    """The server's own URL, with other parts."""
    return lambda lab: {"url": lab.server.url(**({"user": lab.role} | parts))}


def url(text: str) -> Callable[[Lab], Settings]:
    return lambda lab: {"url": text}


def with_settings(**settings: Any) -> Callable[[Lab], Settings]:
    return lambda lab: {"url": lab.url} | settings


def says(sqlstate: str, text: str) -> Callable[[Lab], Any]:
    """A server that refuses every login with this."""

    async def settings(lab: Lab) -> Settings:
        return {"url": await lab.speaker(sqlstate, text)}

    return settings


async def deaf(lab: Lab) -> Settings:
    lab.proxy.go_deaf()
    return {"url": lab.via_proxy, "connect_timeout_ms": 60}


async def deaf_until_the_deadline(lab: Lab) -> Settings:
    return await deaf(lab) | {"connect_timeout_ms": 2000, "handler_budget_ms": 60}


async def hangs_up(lab: Lab) -> Settings:
    return {"url": await lab.ends.enter_async_context(speaker())}


async def web_server(lab: Lab) -> Settings:
    return {"url": await lab.ends.enter_async_context(speaker(b"HTTP/1.1 400 Bad Request\r\n\r\n"))}


async def strange_login(lab: Lab) -> Settings:
    gss = message(b"R", (7).to_bytes(4, "big"))
    return {"url": await lab.ends.enter_async_context(speaker(gss))}


def password(given: str | None) -> Callable[[Lab], Settings]:
    def settings(lab: Lab) -> Settings:
        user = f"user_{uuid.uuid4().hex[:8]}"
        lab.guarded.psql(f"CREATE ROLE {user} LOGIN PASSWORD '{WORD}'")
        return {"url": lab.guarded.url(user=user, password=given), "connect_timeout_ms": 5000}

    return settings


async def another_authority(lab: Lab) -> Settings:
    address, _ = await lab.tls()
    trustme.CA().cert_pem.write_to_path(lab.directory / "other.pem")
    return {"url": address, "ssl_root_cert": str(lab.directory / "other.pem")}


async def other_name(lab: Lab) -> Settings:
    address, ca = await lab.tls(name="db.internal.example")
    return {"url": address, "ssl_root_cert": ca}


async def expired(lab: Lab) -> Settings:
    address, ca = await lab.tls(expired=True)
    return {"url": address, "ssl_root_cert": ca}


async def iam_denied(lab: Lab) -> Settings:
    address, ca = await lab.tls(said=refusal("28000", "PAM authentication failed"))
    region = "main.abc123.eu-west-1.rds.amazonaws.com"
    return {
        "url": address.replace(LOOPBACK, region), "iam_auth": True, "ssl_root_cert": ca,
        "proxy_host": address.rpartition("@")[2].partition("/")[0], "sslmode": "verify-ca",
    }  # fmt: skip


def role_limit(lab: Lab) -> Settings:
    lab.server.psql(f"ALTER ROLE {lab.role} CONNECTION LIMIT 0")
    return {"url": lab.url}


def not_allowed(lab: Lab) -> Settings:
    name = f"closed_{uuid.uuid4().hex[:8]}"
    lab.server.psql(f"CREATE DATABASE {name}")
    lab.server.psql(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    lab.ends.callback(lab.server.psql, f"DROP DATABASE {name}")
    return {"url": lab.server.url(user=lab.role, database=name)}


def secret(value: object) -> Callable[[Lab], Settings]:
    def settings(lab: Lab) -> Settings:
        # the first client of boto3 in a process takes long, on a busy machine
        return {"secret_arn": f"{lab.arn}{value}", "connect_timeout_ms": 5000, "handler_budget_ms": 5000}

    return settings


async def come_to_rest(lab: Lab, pool: GuardedPool) -> None:
    """The trigger waits for no connection, so that all of its time is its callback's."""
    await at_rest(pool)


async def wait_for_a_lock(lab: Lab, pool: GuardedPool) -> None:
    holder = await lab.server.connect()
    lab.ends.push_async_callback(holder.close)
    transaction = holder.transaction()
    await transaction.start()
    lab.ends.push_async_callback(transaction.rollback)
    await holder.execute(f"LOCK TABLE {lab.role}.app_user")


async def slow_for_the_role(conn: Any, user: Any) -> None:
    await conn.execute("SET statement_timeout = 20")
    await conn.execute("SELECT pg_sleep(5)")


async def without_resources(conn: Any, user: Any) -> None:
    await conn.execute("DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$")


async def session_ends(conn: Any, user: Any) -> None:
    await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def key_error(conn: Any, user: Any) -> Any:
    return {}["role"]


async def http_call(conn: Any, user: Any) -> None:
    await asyncio.Event().wait()


async def swallows(conn: Any, user: Any) -> None:
    with contextlib.suppress(Exception):
        await conn.execute("SELECT 1/0")


async def commits(conn: Any, user: Any) -> None:
    await conn.execute("COMMIT")


async def writes_on_a_standby(conn: Any, user: Any) -> None:
    await conn.execute("SET TRANSACTION READ ONLY")
    await conn.execute("CREATE TABLE written ()")


def returns(value: Any) -> Any:
    async def claims(conn: Any, user: Any) -> Any:
        return value

    return claims


def v1(**request: Any) -> dict[str, Any]:
    return token_event("1", sub=SUB, **request)


def without_sub() -> dict[str, Any]:
    event = token_event("2", sub=SUB)
    del event["request"]["userAttributes"]["sub"]
    return event


RDS_NAME = "postgresql://user:word@nowhere.invalid/db"

ROWS = [
    # -- settings
    Row("no URL", ("No database URL: set LAMBDA_DATABASE_URL or DATABASE_URL",), lambda lab: {}),
    Row("not a URL", ("The database URL must start with postgresql://",), url("localhost:5432")),
    Row(
        "a number out of range",
        (r"LAMBDA_DATABASE_POOL_MAX\) must be a whole number from 1 to 100",),
        with_settings(pool_max=0),
    ),
    Row(
        "a misspelt setting",
        ("LAMBDA_DATABASE_POOL_MAXX is not a setting; the nearest is LAMBDA_DATABASE_POOL_MAX",),
        with_settings(pool_maxx=1),
    ),
    Row("an unknown parameter in the URL", ("sslmod", "sslmode"), lambda lab: {"url": f"{lab.url}?sslmod=require"}),
    Row(
        "a URL that contradicts a setting",
        ("connection_limit", "LAMBDA_DATABASE_POOL_MAX"),
        lambda lab: {"url": f"{lab.url}?connection_limit=2", "pool_max": 3},
    ),
    Row("no claims statement", ("There is no claims callback", "LAMBDA_DATABASE_CLAIMS_SQL"), claims=None),
    Row(
        "two statements in one",
        ("more than one statement", "exactly one SQL statement"),
        claims="SELECT 1 AS a; SELECT 2 AS b",
    ),
    Row("a parameter too many", (r"uses \$4", r"Use only \$1 \(the sub\)"), claims="SELECT $4 AS a"),
    Row(
        "no file of authorities",
        ("LAMBDA_DATABASE_SSL_ROOT_CERT",),
        with_settings(sslmode="verify-full", ssl_root_cert="/nowhere.pem"),
    ),
    Row("a callback that is not async", ("must be an `async def claims",), claims=lambda conn, user: {}),
    # -- the way to the server
    Row("the wrong port", ("nothing listens at its host and port; check both",), urls(port=free_port())),
    Row(
        "a host that does not answer",
        ("did not answer in time", "security group", "LAMBDA_DATABASE_CONNECT_TIMEOUT_MS"),
        deaf,
    ),
    Row("the same, with less time", ("did not answer in time", "security group"), deaf_until_the_deadline),
    Row("the wrong host", ("its host name could not be resolved; check the name and the DNS",), url(RDS_NAME)),
    Row("a web server at the port", ("check that the host and the port lead to PostgreSQL",), web_server),
    Row("a server that hangs up", (r"the connection (was lost|ended) during the login", "check"), hangs_up),
    Row(
        "a server without TLS",
        ("does not support TLS", "LAMBDA_DATABASE_SSLMODE=disable"),
        with_settings(sslmode="require"),
    ),
    Row("the wrong authority", ("a CA that is not trusted", "LAMBDA_DATABASE_SSL_ROOT_CERT"), another_authority),
    Row("a certificate for another name", ("connect by a name in the certificate",), other_name),
    Row("an expired certificate", ("certificate has expired; renew it",), expired),
    # -- the login
    Row("the wrong password", ("check the user and the password in LAMBDA_DATABASE_URL", "28P01"), password("wrong")),
    Row(
        "no password",
        ("the settings have none; add it to LAMBDA_DATABASE_URL, or set LAMBDA_DATABASE_SECRET_ARN",),
        password(None),
    ),
    Row("no such user", ("refused the login; check the user",), urls(user="nobody_at_all")),
    Row("no such database", ("does not exist; create it, or correct its name", "3D000"), urls(database="nowhere")),
    Row("no right to connect", ("GRANT CONNECT ON DATABASE", "42501"), not_allowed),
    Row("a login method that the driver lacks", ("login method", "scram-sha-256"), strange_login),
    Row("IAM denied", ("rds_iam", "rds-db:connect"), iam_denied),
    Row("no such secret", ("secret",), secret("-nothing")),
    # -- a full or busy server
    Row("the role's limit", ("no connections left", "CONNECTION LIMIT"), role_limit),
    Row(
        "a full server",
        ("no connections left; lower LAMBDA_DATABASE_POOL_MAX",),
        says("53300", "sorry, too many clients already"),
    ),
    Row(
        "a starting server",
        ("starting up or shutting down; try again",),
        says("57P03", "the database system is starting up"),
    ),
    Row(
        "a full pooler",
        ("transaction mode", "LAMBDA_DATABASE_PROXY_PROFILE=true"),
        says("XX000", "MaxClientsInSessionMode: max clients reached"),
    ),
    Row("a pooler that does not know the user", ("postgres.<project>",), says("XX000", "Tenant or user not found")),
    # -- the statement
    Row(
        "no such table",
        (
            "The table does not exist in the search_path",
            'refused claims= of CognitoTriggers: relation "app_usr" does not exist',
            "42P01",
        ),
        claims="SELECT role FROM app_usr WHERE cognito_sub = $1",
    ),
    Row(
        "no such column",
        ("The column does not exist; check its name", 'column "rolle" does not exist', "42703"),
        claims="SELECT rolle FROM app_user WHERE cognito_sub = $1",
    ),
    Row(
        "no such table to write to",
        ('refused provision= of CognitoTriggers: relation "app_usr" does not exist',),
        provision="INSERT INTO app_usr VALUES ($1)",
    ),
    Row(
        "no privilege",
        ("lacks a privilege; GRANT it", "permission denied for"),
        claims="SELECT rolname AS a FROM pg_authid WHERE rolname = $1",
    ),
    Row("no SQL", ("The text is not SQL", "syntax error"), claims="SELEC 1"),
    Row(
        "types that do not match",
        ("cast the parameter", "operator does not exist"),
        claims="SELECT 1 AS a WHERE $1::text = 5",
    ),
    Row(
        "a type that cannot be known",
        ("cast it, as in", "could not determine data type"),
        claims="SELECT 1 AS a WHERE $1 IS NULL",
    ),
    Row("an insert without RETURNING", ("Add RETURNING",), claims=INSERT),
    Row("more than one row", ("more than one row",), claims="SELECT 1 AS a FROM generate_series(1, 2)"),
    Row("a column without a name", ("Name it with AS",), claims="SELECT 1"),
    Row(
        "a slow statement",
        ("longer than 0.06 s", "LAMBDA_DATABASE_COMMAND_TIMEOUT_MS", "An index"),
        with_settings(command_timeout_ms=60),
        claims="SELECT pg_sleep(5)::text AS a",
    ),
    Row(
        "a statement slower than the trigger may be",
        ("LAMBDA_DATABASE_HANDLER_BUDGET_MS", "faster"),
        with_settings(handler_budget_ms=80),
        claims="SELECT pg_sleep(5)::text AS a",
        before=come_to_rest,
    ),
    Row("a lock", ("lock that it waits for",), with_settings(command_timeout_ms=200), before=wait_for_a_lock),
    Row("the role's own statement_timeout", ("statement_timeout",), claims=slow_for_the_role),
    Row("a full disk", ("lacks the resources", "Check its disk", "53100"), claims=without_resources),
    Row("a session that ends", ("The session ended", "check the server's log"), claims=session_ends),
    Row(
        "a row that exists",
        ("ON CONFLICT DO NOTHING", "23505"),
        provision="INSERT INTO app_user (cognito_sub) VALUES ($1)",
    ),
    Row("a read-only server", ("read-only; connect to the writer", "25006"), provision=writes_on_a_standby),
    # -- the claims and the callback
    Row("a reserved claim", ("The claim 'sub' is reserved",), claims=returns({"sub": "x"})),
    Row("a value that JSON lacks", ("The claim 'score' contains a NaN",), claims=returns({"score": float("nan")})),
    Row("scopes at version 1", ("LambdaVersion to V2_0",), claims=returns(TokenClaims(add_scopes=["a"])), event=v1),
    Row("a mistake in the callback", (r"KeyError at .*test_breakages\.py:\d+ \(key_error\)",), claims=key_error),
    Row(
        "a slow HTTP call",
        ("other than the database, such as an HTTP call",),
        with_settings(handler_budget_ms=60),
        claims=http_call,
        before=come_to_rest,
    ),
    Row("an error that the callback swallows", ("let the error pass", "25P02"), provision=swallows),
    Row("a COMMIT in the callback", ("Remove its COMMIT or ROLLBACK",), provision=commits),
    # -- the wiring
    Row(
        "load_claims as post confirmation",
        ("load_claims was called for PostConfirmation_ConfirmSignUp", "pre token generation trigger"),
        event=lambda: confirmation_event(SUB),
    ),
    Row(
        "provision_user as pre token generation",
        ("provision_user was called for TokenGeneration_HostedAuth", "post confirmation trigger"),
        provision=INSERT,
        event=lambda: token_event("2", sub=SUB),
        answered=True,
    ),
    Row("an event without a user", ("request.userAttributes.sub is missing",), event=without_sub),
    Row(
        "an event of a later version",
        ("version is missing or invalid",),
        event=lambda: token_event("2", sub=SUB) | {"version": "9"},
    ),
    Row(
        "a machine statement with $3",
        (r"uses \$3",),
        with_settings(machine_claims_sql="SELECT $3 AS a"),
        event=machine_event,
    ),
    # -- beside the database
    Row(
        "Redis is down",
        (
            "The claims cache is unavailable",
            "LAMBDA_DATABASE_CLAIMS_CACHE_URL",
        ),
        lambda lab: {"url": lab.url, "claims_cache_url": f"redis://127.0.0.1:{free_port()}"},
        answered=True,
    ),
]

POOLER_ROWS = [
    Row(
        "a pooler that no setting mentions",
        ("transaction pooler", "LAMBDA_DATABASE_PROXY_PROFILE=true"),
        answered=True,
    ),
    Row(
        "a pooler that does not know the database user",
        ("check the user", "LAMBDA_DATABASE_URL"),
        lambda lab: {"url": lab.url.replace(lab.role, "nobody")},
    ),
    Row(
        "a pooler that has stopped", ("nothing listens at its host and port; check both",), lambda lab: {"url": lab.url}
    ),
]
"""Through a real PgBouncer, whose port takes the place of the server's."""


@pytest.fixture
async def lab(
    server: Cluster,
    guarded_server: Cluster,  # noqa: F811
    role: str,
    proxy: TcpProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Lab]:
    server.psql(TABLE.format(schema=role, sub=SUB))
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": WORD, "AWS_SESSION_TOKEN": "testing",
        "AWS_REGION": "eu-west-1", "AWS_CONFIG_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:sign-up"
    lab = Lab(server, guarded_server, role, proxy, tmp_path, arn)
    async with lab.ends:
        yield lab


def test_there_are_enough_rows() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 38


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_the_log_says_what_to_do(
    row: Row,
    lab: Lab,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = row.settings(lab)
    settings = await given if asyncio.iscoroutine(given) else given
    if "secret_arn" in settings:
        request.getfixturevalue("secrets_manager")
    await break_and_read(row, lab, settings, caplog, monkeypatch)


@pytest.mark.debian
@pytest.mark.parametrize("row", POOLER_ROWS, ids=lambda row: row.name)
async def test_the_log_says_what_to_do_behind_a_real_pooler(
    row: Row, lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.server.psql(f"ALTER ROLE {lab.role} SET search_path = {lab.role}")  # startup parameters do not pass a pooler
    with PgBouncer(lab.server, {lab.role: ""}) as bouncer:
        settings = row.settings(lab)
        settings["url"] = settings["url"].replace(f":{lab.server.port}/", f":{bouncer.port}/")
        if "stopped" in row.name:
            bouncer.stop()
        await break_and_read(row, lab, settings, caplog, monkeypatch)


async def break_and_read(
    row: Row,
    lab: Lab,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function")
    pool = GuardedPool()
    for name, value in settings.items():
        monkeypatch.setenv(f"LAMBDA_DATABASE_{name.upper()}", str(value))
    triggers = CognitoTriggers(pool, claims=row.claims, provision=row.provision)
    if row.before is not None:
        await pool.ping()
        await row.before(lab, pool)
    run = triggers.load_claims if row.provision is None else triggers.provision_user
    usual = token_event("2", sub=SUB) if row.provision is None else confirmation_event(SUB)
    event = usual if row.event is None else row.event()
    with contextlib.nullcontext() if row.answered else pytest.raises(TriggerFailedError):
        await run(event)
    await pool.close()
    records = [record for record in caplog.records if record.name == "asyncdb_guard"]
    lines = [record.getMessage() for record in records]
    for part in row.says:
        assert any(re.search(part, line) for line in lines), (part, lines)
    for line in lines:
        assert "\n" not in line
        assert not [word for word in PRIVATE if word in line], line
    worst = [record for record in records if record.levelno == logging.ERROR]
    assert len(worst) == (not row.answered)
    for record in worst:
        fields = {name: getattr(record, name) for name in ("error", "sqlstate", "remedy", "where")}
        assert fields["error"]
        assert fields["remedy"] or fields["where"]
        assert not [word for word in PRIVATE if word in json.dumps(fields)]

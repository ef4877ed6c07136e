"""`asyncdb-guard doctor` on good and on broken set-ups, each with a real server, pooler or store behind it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
import trustme

from asyncdb_guard.cli import findings
from asyncdb_guard.cli.findings import Grade, PoolerKind
from asyncdb_guard.cli.main import main
from asyncdb_guard.testing.ports import free_port
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.hot_standby import hot_standby
from tests.support.pgbouncer import PgBouncer
from tests.support.redis import RedisServer
from tests.support.speaker import Platform, speaker

debian = pytest.mark.debian


OTHERS_DEFAULTS = {"BREAKER_RESET_TIMEOUT_MS": "10000", "BREAKER_RESET_TIMEOUT_MAX_MS": "60000"}


STARTUP_9_4 = ("application_name", "statement_timeout")


class Report(NamedTuple):
    code: int
    grades: dict[str, str]
    texts: dict[str, str]
    settings: dict[str, tuple[str, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`doctor(url, CLAIMS_SQL="…")`: the report on an environment with these variables."""

    def examine(url: str | None, *options: str, **variables: str) -> Report:
        if url is not None:
            monkeypatch.setenv("LAMBDA_DATABASE_URL", url)
        for name, value in variables.items():
            monkeypatch.setenv(f"LAMBDA_DATABASE_{name}", value)
        capsys.readouterr()
        code = main(["doctor", "--json", *options])
        said = json.loads(capsys.readouterr().out)
        texts: dict[str, str] = {}
        for one in said["findings"]:
            texts[one["name"]] = " ".join(filter(None, (texts.get(one["name"]), one["text"])))
        return Report(
            code,
            {one["name"]: one["grade"] for one in said["findings"]},
            texts,
            {one["setting"]: (one["source"], one["shown"]) for one in said["settings"]},
        )

    return examine


def only_bad(report: Report, name: str) -> str:
    """The text of the one bad finding; after it, the way is over where nothing can follow."""
    assert report.code == 2
    assert [found for found, grade in report.grades.items() if grade == "bad"] == [name]
    return report.texts[name]


# Good ones


def test_all_is_good(doctor: Any, server: Cluster, role: str, url: str) -> None:
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 7")
    report = doctor(url)
    assert report.code == 0
    assert set(report.grades.values()) == {"good"}
    assert report.texts["role"] == "CONNECTION LIMIT 7"
    assert report.texts["breaker"].startswith("2000 and 5000 ms, for 7 pools (at most, by the role's CONNECTION LIMIT)")
    assert report.texts["pooler"].startswith("direct")
    assert "idle_session_timeout 60250 ms" in report.texts["timeouts"]
    assert report.texts["version"] == f"PostgreSQL {server.version}"
    assert "median of 5" in report.texts["round trip"]


def test_lines_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, role: str
) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", f"{url}&pool_timeout=2" if "?" in url else f"{url}?pool_timeout=2")
    monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", "2")
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["pool_max", "2", "(LAMBDA_DATABASE_POOL_MAX)"] for line in lines)
    assert any(line.startswith("connect_timeout_ms") and "(the database URL)" in line for line in lines)
    assert any(line.startswith("url ") and "(not shown)" in line for line in lines)
    assert any(line.split()[:2] == ["role", "doubtful"] for line in lines)
    assert role not in "\n".join(lines)


def test_database_url_is_named_where_it_is_the_source(doctor: Any, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert doctor(None).settings["url"] == ("DATABASE_URL", "(not shown)")


def test_statements_are_prepared_and_described(doctor: Any, url: str) -> None:
    report = doctor(
        url,
        CLAIMS_SQL="SELECT 'x' AS role WHERE $1 <> ''",
        PROVISION_SQL="SELECT 1 WHERE $2 <> ''",
        MACHINE_CLAIMS_SQL="SELECT 'a' AS scope WHERE $1 <> ''",
    )
    assert (
        report.grades["claims_sql"] == report.grades["provision_sql"] == report.grades["machine_claims_sql"] == "good"
    )
    assert "parameters: text" in report.texts["claims_sql"]
    assert "columns:" in report.texts["claims_sql"]


def test_a_statement_that_postgresql_refuses(doctor: Any, url: str) -> None:
    report = doctor(url, CLAIMS_SQL="SELECT role FROM nowhere WHERE sub = $1", PROVISION_SQL="SELECT $9")
    assert 'relation "nowhere" does not exist' in report.texts["claims_sql"]
    assert "uses $9" in report.texts["provision_sql"]
    assert report.grades["claims_sql"] == report.grades["provision_sql"] == "bad"


def test_a_standby_that_is_wanted_is_good(doctor: Any, server: Cluster, role: str) -> None:
    server.psql(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    report = doctor(server.url(user=role, target_session_attrs="read-only"))
    assert "writes" not in report.grades


# Broken ones


def test_a_wrong_host(doctor: Any) -> None:
    text = only_bad(doctor("postgresql://someone@no-such-host.invalid/app", SSLMODE="disable"), "name")
    assert "host name could not be resolved; check the name" in text
    assert "no-such-host" not in text


def test_a_wrong_port(doctor: Any) -> None:
    text = only_bad(doctor(f"postgresql://someone@127.0.0.1:{free_port()}/app"), "tcp")
    assert "nothing listens at its host and port; check both" in text


def test_a_port_that_does_not_answer(doctor: Any, proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    proxy.hang = True
    text = only_bad(doctor(url_via_tcp_proxy, CONNECT_TIMEOUT_MS="200"), "login")
    assert "did not answer in time; check its address" in text


async def test_a_port_of_something_else(doctor: Any) -> None:
    async with speaker(b"220 mail ready\r\n") as url:
        port = urlsplit(url).port
        report = await asyncio.to_thread(doctor, f"postgresql://someone@127.0.0.1:{port}/app", SSLMODE="require")
    assert "did not answer as PostgreSQL does" in only_bad(report, "tls")


def test_a_server_without_tls(doctor: Any, url: str) -> None:
    text = only_bad(doctor(url, SSLMODE="require"), "tls")
    assert "does not support TLS; enable TLS there" in text


def test_a_wrong_password(doctor: Any) -> None:
    with Cluster.start(16, auth="scram-sha-256") as server:
        server.psql("CREATE ROLE guest LOGIN PASSWORD 'right'")
        wrong = server.url(user="guest").replace("guest@", "guest:wr0ng@")
        text = only_bad(doctor(wrong), "login")
        assert "refused the password; check the user and the password in LAMBDA_DATABASE_URL" in text
        assert "wr0ng" not in text


def test_a_wrong_database(doctor: Any, url: str) -> None:
    text = only_bad(doctor(url.replace("/postgres", "/elsewhere")), "login")
    assert "does not exist; create it, or correct its name" in text


def test_a_role_without_a_connection_left(doctor: Any, server: Cluster, role: str, url: str) -> None:
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    text = only_bad(doctor(url), "login")
    assert "no connections left; lower LAMBDA_DATABASE_POOL_MAX" in text


async def test_a_full_server(doctor: Any) -> None:
    with Cluster.start(16, settings={"max_connections": "4", "superuser_reserved_connections": "1"}) as server:
        server.psql("CREATE ROLE someone LOGIN")
        others = [await asyncpg.connect(server.url(user="someone", sslmode="disable")) for _ in range(3)]
        try:
            report = await asyncio.to_thread(doctor, server.url(user="someone"))
        finally:
            for other in others:
                await other.close()
    assert "no connections left; lower LAMBDA_DATABASE_POOL_MAX" in only_bad(report, "login")


def test_an_unknown_variable(doctor: Any, url: str) -> None:
    text = only_bad(doctor(url, POOL_SIZE="1"), "settings")
    assert "LAMBDA_DATABASE_POOL_SIZE is not a setting: use LAMBDA_DATABASE_POOL_MAX." in text


def test_a_hot_standby(doctor: Any) -> None:
    with hot_standby("CREATE ROLE someone LOGIN") as pair:
        assert "writes" not in doctor(pair.standby.url(user="someone", target_session_attrs="standby")).grades
        text = only_bad(doctor(pair.standby.url(user="someone")), "writes")
    assert text.startswith("a standby, which refuses writes. Connect to the writer's endpoint")
    assert "target_session_attrs=read-write" in text


def test_a_read_only_server(doctor: Any, server: Cluster, role: str, url: str) -> None:
    server.psql(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    text = only_bad(doctor(url), "writes")
    assert "default_transaction_read_only is on" in text
    assert "connect to the writer" in text


@pytest.mark.parametrize("version", ["9.4.26", "11.22"])
async def test_a_server_that_is_too_old(doctor: Any, version: str) -> None:
    """It refuses the startup parameters that it does not know, and is asked no question that it may not understand."""
    old = Platform(version=version, knows=("user", "database", "client_encoding", *STARTUP_9_4))
    async with old.serve() as url:
        report = await asyncio.to_thread(doctor, url)
    text = only_bad(report, "version")
    assert text.startswith(f"PostgreSQL {version.partition('.')[0]} is too old")
    assert text.endswith("Upgrade to 14 or later.")
    assert all("pg_backend_pid" in asked for asked in old.asked), "the login's own question, which any version answers"
    assert list(report.grades)[-1] == "version"


def test_a_server_that_is_almost_too_old() -> None:
    assert findings.version(13).grade is Grade.DOUBTFUL


def test_a_server_that_refuses_a_question(doctor: Any, server: Cluster, role: str, url: str) -> None:
    server.psql(
        f"CREATE FUNCTION {role}.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT (1 / 0)::text $$;"
        f"ALTER ROLE {role} SET search_path = {role}, pg_catalog"
    )
    assert "a question was refused (22012). Look at the server's log" in only_bad(doctor(url), "session")


def test_a_session_pooler_without_another_connection_is_one(doctor: Any, server: Cluster, role: str, url: str) -> None:
    """What each client keeps is seen from the second login, too: here it is refused."""
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    assert doctor(url).texts["pooler"].startswith("direct")


def test_a_unix_socket(doctor: Any, server: Cluster, role: str) -> None:
    report = doctor(f"postgresql://{role}@/postgres?host=/nowhere")
    assert report.texts["tcp"].startswith("a Unix socket")
    assert report.grades["login"] == "bad"


def test_a_superuser_is_doubtful(doctor: Any, server: Cluster) -> None:
    report = doctor(server.url())
    assert report.code == 1
    assert "Log in as an ordinary role" in report.texts["role"]


def test_a_provider_without_credentials(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = only_bad(
        doctor(
            "postgresql://127.0.0.1/app", SECRET_ARN="arn:aws:secretsmanager:eu-west-1:123456789012:secret:x-AbCdEf"
        ),
        "login",
    )
    assert "No AWS credentials were found" in text


def test_timeouts_that_did_not_take() -> None:
    finding = findings.timeouts({"idle_session_timeout": "60250"}, {"idle_session_timeout": "0"})
    assert finding.grade is Grade.DOUBTFUL
    assert "ALTER ROLE" in finding.text


def test_a_certificate_that_ends_soon() -> None:
    finding = findings.certificate("a CA", 7.0)
    assert finding.grade is Grade.DOUBTFUL
    assert "expires in 7 days: renew it" in finding.text


def test_a_proxy_profile_without_a_pooler(doctor: Any, url: str) -> None:
    report = doctor(url, PROXY_PROFILE="true")
    assert report.grades["pooler"] == "doubtful"
    assert "direct, but the proxy profile is on" in report.texts["pooler"]


def test_stores_that_are_away(doctor: Any, url: str) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}"
    report = doctor(url, FLEET_URL=nobody, CLAIMS_CACHE_URL=nobody)
    assert report.grades["fleet store"] == report.grades["claims cache"] == "doubtful"
    assert (
        "is unavailable (ConnectionError). Check the server, the network and fleet_url" in report.texts["fleet store"]
    )


def test_a_store_without_its_extra(doctor: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "redis", None)
    report = doctor(url, FLEET_URL="redis://127.0.0.1:1")
    assert "needs the extra `redis`" in report.texts["fleet store"]


# The fleet


FITS = "all are back within seconds"


@pytest.mark.parametrize(
    ("options", "variables", "grade", "told"),
    [
        (("--concurrency", "80", "--vcpu", "2"), {}, "good", FITS),
        (("--concurrency", "80", "--processes", "10", "--vcpu", "1"), {}, "doubtful", "=5400"),
        (("--concurrency", "80", "--connects-per-second", "40"), {}, "doubtful", "RESET_TIMEOUT_MAX_MS=8000"),
        (("--concurrency", "80", "--vcpu", "2"), OTHERS_DEFAULTS, "doubtful", "return 58 s late"),
        (("--concurrency", "8000"), {}, "doubtful", "(29 vCPUs)"),
        (("--concurrency", "80"), {}, "good", FITS),
        ((), {}, "good", "for 97 pools (at most, by max_connections)"),
        (("--vcpu", "0.1"), {}, "doubtful", "are too short"),
        ((), OTHERS_DEFAULTS, "doubtful", "Set LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MS=700 and"),
    ],
)
def test_open_periods_must_fit_the_fleet(
    doctor: Any, url: str, options: tuple[str, ...], variables: dict[str, str], grade: str, told: str
) -> None:
    report = doctor(url, *options, **variables)
    assert report.grades["breaker"] == grade
    assert told in report.texts["breaker"]


def test_what_budget_prints_is_what_doctor_wants(doctor: Any, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = ("--concurrency", "90", "--connects-per-second", "30")
    doctor(url)
    main(["budget", *fleet])
    periods = dict(re.findall(r"LAMBDA_DATABASE_(BREAKER_\w+)=(\d+)", capsys.readouterr().out))
    assert doctor(url, *fleet).grades["breaker"] == "doubtful"
    assert doctor(url, *fleet, **periods).grades["breaker"] == "good"


def test_a_fleet_that_does_not_fit(doctor: Any, server: Cluster, role: str, url: str) -> None:
    assert doctor(url, "--concurrency", "20").grades["fits"] == "good"
    assert "% never get a session" in only_bad(doctor(url, "--concurrency", "200"), "fits")
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 7")
    report = doctor(url, "--concurrency", "20")
    assert report.grades["fits"] == "doubtful"
    assert "CONNECTION LIMIT of 7 is too low: raise it" in report.texts["fits"]


# With Debian's programs


@debian
def test_stores_that_answer(doctor: Any, url: str) -> None:
    with RedisServer() as redis:
        report = doctor(url, FLEET_URL=redis.url, CLAIMS_CACHE_URL=redis.url)
    assert report.grades["fleet store"] == report.grades["claims cache"] == "good"


def certificate(directory: Path, **options: Any) -> tuple[Path, Path, str]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", **options)
    issued.cert_chain_pems[0].write_to_path(directory / "server.crt")
    issued.private_key_pem.write_to_path(directory / "server.key")
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return directory / "server.crt", directory / "server.key", str(directory / "ca.crt")


@debian
def test_tls_in_all_its_ways(doctor: Any, tls_server: tuple[Cluster, str], tmp_path: Path) -> None:
    server, authority = tls_server
    server.psql("CREATE ROLE someone LOGIN")
    url = f"postgresql://someone@{server.host}:{server.port}/postgres"
    report = doctor(url, SSLMODE="verify-full", SSL_ROOT_CERT=authority)
    assert report.grades["tls"] == "good"
    assert report.texts["tls"].startswith("verified, signed by trustme")
    other = tmp_path / "other.crt"
    trustme.CA().cert_pem.write_to_path(other)
    text = only_bad(doctor(url, SSL_ROOT_CERT=str(other)), "tls")
    assert "comes from a CA that is not trusted; name that CA's file in LAMBDA_DATABASE_SSL_ROOT_CERT" in text
    text = only_bad(doctor(url, SSL_ROOT_CERT=str(tmp_path / "missing.crt")), "tls")
    assert "must name a readable PEM file" in text


@debian
@pytest.mark.parametrize("options", [(), ("--vcpu", "8")])
def test_iam_logins_are_throttled(
    doctor: Any, monkeypatch: pytest.MonkeyPatch, tls_server: tuple[Cluster, str], options: tuple[str, ...]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    server, authority = tls_server
    server.psql("CREATE ROLE someone LOGIN")
    url = f"postgresql://someone@{server.host}:{server.port}/postgres"
    report = doctor(url, "--concurrency", "1000", *options, IAM_AUTH="true", SSL_ROOT_CERT=authority)
    assert "200 logins a second, are too short" in report.texts["breaker"]


@debian
def test_encryption_without_verification_is_doubtful(doctor: Any, tls_server: tuple[Cluster, str]) -> None:
    server, _ = tls_server
    server.psql("CREATE ROLE someone LOGIN")
    report = doctor(f"postgresql://someone@{server.host}:{server.port}/postgres", SSLMODE="require")
    assert report.grades["tls"] == "doubtful"
    assert "to verify-full" in report.texts["tls"]


@debian
def test_an_expired_certificate(doctor: Any, tmp_path: Path) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    crt, key, authority = certificate(tmp_path, not_after=yesterday)
    with Cluster.start(source="machine", tls=(crt, key)) as server:
        report = doctor(f"postgresql://someone@{server.host}:{server.port}/postgres", SSL_ROOT_CERT=authority)
    assert "has expired; renew it on the server" in only_bad(report, "tls")


@debian
@pytest.mark.parametrize(("mode", "profile"), [("transaction", False), ("session", False), ("transaction", True)])
@pytest.mark.parametrize("backends", [1, 2])
def test_a_pooler_is_proved(doctor: Any, server: Cluster, role: str, mode: str, profile: bool, backends: int) -> None:
    with PgBouncer(server, {role: ""}, mode=mode, ignored=IGNORED, backends=backends) as bouncer:
        variables = {"PROXY_PROFILE": "true"} if profile else {}
        report = doctor(bouncer.url(role), CLAIMS_SQL="SELECT 1 AS one WHERE $1 <> ''", **variables)
    assert f"pooler in {mode} mode" in report.texts["pooler"]
    if profile:
        assert report.grades["pooler"] == "good"
    else:
        assert report.code == 2
        assert "Set proxy_profile (LAMBDA_DATABASE_PROXY_PROFILE) to true" in report.texts["pooler"]
    assert report.texts["claims_sql"].startswith("not prepared")
    assert "Give --concurrency and --connects-per-second" in report.texts["breaker"]


@debian
def test_a_pooler_is_judged_by_the_logins_that_it_takes(doctor: Any, server: Cluster, role: str) -> None:
    with PgBouncer(server, {role: ""}) as bouncer:
        fleet = ("--concurrency", "1000", "--connects-per-second", "2000")
        report = doctor(bouncer.url(role), *fleet, PROXY_PROFILE="true")
    assert report.grades["breaker"] == "good"
    assert "fits" not in report.grades


IGNORED = "idle_session_timeout,idle_in_transaction_session_timeout,client_connection_check_interval,statement_timeout"


def test_each_kind_of_pooler_has_its_words() -> None:
    assert findings.pooler(PoolerKind.SESSION, profile=True).grade is Grade.GOOD

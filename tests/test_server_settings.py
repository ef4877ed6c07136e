"""`server_settings`: what the server shows, what is refused, and by what name a session goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from asyncdb_guard import ConfigurationError, ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.settings.server_settings import (
    milliseconds,
    parse_server_settings,
    session_name,
    write_server_settings,
)

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

URL = "postgresql://u@db.example/d"
ZONE = "SHOW timezone"


@pytest.mark.parametrize("way", ["keyword", "text", "variable", "options"])
async def test_they_are_sent_at_startup_and_survive_the_reset(
    url: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = r"-c timezone=Asia/Tokyo --search-path=pg_catalog,\ public -cjit=off"
    if way == "variable":
        monkeypatch.setenv("LAMBDA_DATABASE_SERVER_SETTINGS", text)
    given: dict[str, Any] = {
        "keyword": {"server_settings": {"timezone": "Asia/Tokyo", "Search_Path": "pg_catalog, public", "jit": False}},
        "text": {"server_settings": text},
    }.get(way, {})
    if way == "options":
        url += f"{'&' if '?' in url else '?'}options={quote(text, safe='')}"
    async with GuardedPool(DatabaseSettings(url=url, **given)) as pool:
        for _ in range(2):
            async with pool.acquire() as connection:
                assert await connection.fetchval(ZONE) == "Asia/Tokyo"
                assert await connection.fetchval("SHOW search_path") == "pg_catalog, public"
                assert await connection.fetchval("SHOW jit") == "off"
                await connection.execute("SET timezone = 'UTC'; SET jit = on")
        assert pool.stats()["connects"] == 1


async def test_a_session_keeps_a_hundred_prepared_statements(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool, pool.acquire() as connection:
        for number in range(110):
            await connection.fetchval(f"SELECT {number}")
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == 100


async def test_the_stricter_timeout_counts(url: str) -> None:
    own = {"statement_timeout": "1500ms", "idle_session_timeout": 9000}
    async with GuardedPool(DatabaseSettings(url=url, server_settings=own)) as pool, pool.acquire() as connection:
        assert await connection.fetchval("SHOW statement_timeout") == "1500ms"
        assert await connection.fetchval("SHOW idle_session_timeout") == "9s"
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "60250ms"


@pytest.mark.parametrize(("own", "sqlstate"), [({"timezone": "Mars"}, "22023"), ({"no_such_thing": "1"}, "42704")])
async def test_one_that_the_server_refuses_is_told_and_costs_no_timeout(
    url_via_tcp_proxy: str, proxy: TcpProxy, own: dict[str, Any], sqlstate: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = DatabaseSettings(url=url_via_tcp_proxy, server_settings=own, connect_timeout_ms=10_000)
    async with GuardedPool(settings) as pool:
        for _ in range(2):
            with pytest.raises(ConnectFailedError, match=rf"LAMBDA_DATABASE_SERVER_SETTINGS.*{sqlstate}"):
                await pool.ping()
    assert len(proxy.startups) == 2
    assert all("statement_timeout" in startup for startup in proxy.startups)
    assert caplog.records == []


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"proxy_profile": True, "server_settings": {"jit": "off"}}, "under the proxy profile"),
    *[
        ({"server_settings": {name: "a"}}, f"names {name}, which is set already")
        for name in (
            "user",
            "database",
            "client_encoding",
            "options",
            "replication",
            "client_connection_check_interval",
        )
    ],
    ({"url": f"{URL}?application_name=a", "server_settings": {"application_name": "b"}}, "application_name in the"),
    ({"url": f"{URL}?schema=a", "server_settings": {"search_path": "b"}}, "so does schema in the database URL"),
    ({"server_settings": {"statement_timeout": "4s"}}, r"longer than command_timeout_ms"),
    ({"server_settings": {"idle_session_timeout": 0}}, r"longer than idle_timeout_ms"),
    ({"server_settings": {"idle_in_transaction_session_timeout": "61s"}}, r"longer than idle_timeout_ms"),
    ({"server_settings": {"statement_timeout": "soon"}}, r"no time, or longer"),
    ({"server_settings": {"no name": "a"}}, "must be settings as in"),
    ({"server_settings": {}}, "must be settings as in"),
    ({"server_settings": "timezone=UTC"}, "must be settings as in"),
    ({"server_settings": 5}, "must be settings as in"),
    ({"url": f"{URL}?options=timezone%3DUTC"}, "options in the database URL must be settings as in -c%20name=value"),
    ({"url": f"{URL}?options=endpoint%3Dep-cool"}, r"options=endpoint… in the database URL"),
    ({"url": f"{URL}?options=--jit%3Doff", "server_settings": {"jit": "on"}}, "options in the database URL contradict"),
]


@pytest.mark.parametrize(("values", "told"), FAULTS, ids=range(len(FAULTS)))
def test_what_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        DatabaseSettings(**{"url": URL, **values})
    assert len(caught.value.faults) == 1


def test_the_same_settings_are_no_contradiction() -> None:
    url = f"{URL}?options=--jit%3Doff%20-c%20timezone%3DUTC"
    settings = DatabaseSettings(url=url, server_settings={"timezone": "UTC", "jit": False})
    assert settings.target.server_settings == (("jit", "off"), ("timezone", "UTC"))
    assert "UTC" not in repr(settings) + repr(settings.target) + str(settings.model_dump())


@pytest.mark.debian
async def test_a_pooler_that_no_setting_announces_is_told(server: Cluster, role: str) -> None:
    from tests.support.pgbouncer import PgBouncer

    ignored = "idle_session_timeout,idle_in_transaction_session_timeout,client_connection_check_interval"
    with PgBouncer(server, {role: ""}, ignored=f"{ignored},statement_timeout,jit") as bouncer:
        settings = DatabaseSettings(url=bouncer.url(role), server_settings={"jit": "off"})
        async with GuardedPool(settings) as pool:
            with pytest.raises(ConfigurationError, match=r"pooler, where server_settings .* cannot be sent"):
                await pool.ping()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("-c a=b", {"a": "b"}),
        ("  -ca=b  --c-d=e=f ", {"a": "b", "c_d": "e=f"}),
        ("-c app.tenant=", {"app.tenant": ""}),
        (r"-c a=b\ c\\d", {"a": r"b c\d"}),
        ("-c a=b -c A=b", {"a": "b"}),
        ("-c a=b -c a=c", None),
        ("-c", None),
        ("-c a", None),
        ("--=a", None),
        ("-B 5", None),
        ("a=b", None),
    ],
)
def test_the_form_is_libpqs(text: str, settings: dict[str, str] | None) -> None:
    assert parse_server_settings(text) == settings
    if settings:
        assert parse_server_settings(write_server_settings(settings)) == settings


def test_durations_are_postgresqls() -> None:
    assert [milliseconds(text) for text in ("5", "5s", "0.5 min", "never")] == [5, 5000, 30_000, 0]
    assert [milliseconds(text) for text in ("20ms", "2600us", "2h", "1d")] == [20, 3, 7_200_000, 86_400_000]


async def test_every_session_has_a_name(
    url: str, role: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def name(**values: Any) -> str:
        async with GuardedPool(DatabaseSettings(**{"url": url, **values})) as pool:
            await pool.ping()
            (row,) = await observer.sessions(user=role)
            return str(row["application_name"])

    monkeypatch.setattr("sys.argv", ["/opt/app/worker.py"])
    assert await name() == "worker"
    assert await name(proxy_profile=True) == "worker"
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "sign-up")
    assert await name() == "sign-up"
    assert await name(server_settings={"application_name": "own"}) == "own"
    assert await name(proxy_profile=True, server_settings={"application_name": "own"}) == "own"
    assert await name(url=f"{url}{'&' if '?' in url else '?'}application_name=from-url") == "from-url"


@pytest.mark.parametrize(
    ("function", "program", "name"),
    [
        (None, "/srv/app/__main__.py", "app"),
        (None, "", "python"),
        (None, "-c", "python"),
        (None, "/srv/Grüße.py", "Gr??e"),
        (None, "/srv/~ my app.py", "~ my app"),
        ("f" * 64, "x", "f" * 63),
    ],
)
def test_the_name_is_one_that_the_server_keeps(function: str | None, program: str, name: str) -> None:
    assert session_name(function, program) == name

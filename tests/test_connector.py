"""What we rely on in asyncpg, private names above all; each test says in plain words what has changed there."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import asyncpg.pool
import pytest

import asyncdb_guard
from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.credentials import FixedCredentials
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.eventually import Eventually

PACKAGE = Path(asyncdb_guard.__file__).parent
ASYNCPG = f"asyncpg {asyncpg.__version__} has changed"

RELIED_UPON = {
    "_detach": "test_detach_ends_a_proxy_and_hands_out_the_connection",
    "_holder": "test_a_connection_can_be_lent_again_and_again",
    "_pool_release_ctr": "test_a_release_ends_statements_cursors_and_transactions",
    "_top_xact": "test_a_connection_remembers_a_transaction_that_did_not_begin",
    "_protocol": "test_a_connection_tells_that_a_statement_is_being_cancelled",
    "_is_cancelling": "test_a_connection_tells_that_a_statement_is_being_cancelled",
    "_stmt_exclusive_section": "test_a_connection_tells_that_a_fetch_is_running",
    "_acquired": "test_a_connection_tells_that_a_fetch_is_running",
    "_transport": "test_a_connection_has_a_transport_with_a_socket",
    "_pool_holder": "test_an_orphaned_connection_wakes_no_pool",
    "_aborted": "test_an_orphaned_connection_wakes_no_pool",
    "_listeners": "test_a_connection_keeps_its_listeners_by_channel",
    "_uid": "test_a_number_goes_up_with_each_new_statement",
    "_get_statement": "test_statements_go_through_two_methods",
    "_do_execute": "test_statements_go_through_two_methods",
    "_query": "test_what_belongs_to_a_connection_can_get_another_class",
    "_connection": "test_what_belongs_to_a_connection_can_get_another_class",
    "_proxy": "test_a_connection_hands_its_proxy_to_callbacks",
    "_con": "test_a_statement_can_be_prepared_from_the_cache",
    "_prepare": "test_a_statement_can_be_prepared_from_the_cache",
    "_config": "test_a_query_can_be_sent_without_a_timer_and_without_a_task",
    "_drop_local_statement_cache": "test_a_connection_can_forget_the_statements_that_it_caches",
    "_server_caps": "test_a_connection_can_be_told_that_the_server_has_no_jit",
}
ROOMS = ("adopting_pool", "lent_connection", "lent_statements", "pooled_connection", "pooler_connection", "sockets")
"""The only ones that know private names."""

NOT_ASYNCPGS = {
    "_conn_lost",
    "_fut_waiter",
    "_log_destroy_pending",
    "_ssl_protocol",
    "_asyncio_future_blocking",
    "_closed",
    "_closing",
    "_call_connection_lost",
    "_read_ready_cb",
    "_replace",
}
"""Of asyncio's futures and transports, and of named tuples."""


@pytest.fixture
async def pool(url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        yield pool


def private_names(path: Path) -> set[str]:
    """The private attributes that a room uses of things which are not its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    overridden = {
        node.name
        for parent in ast.walk(tree)
        if isinstance(parent, ast.ClassDef) and any(isinstance(base, ast.Attribute) for base in parent.bases)
        for node in parent.body
        if isinstance(node, ast.AsyncFunctionDef)
    }
    foreign = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    names = {name for name in (used - own) | foreign | overridden if name.startswith("_") and not name.startswith("__")}
    return names - {"_pool"}


def test_every_private_name_has_its_test() -> None:
    names = set().union(*(private_names(PACKAGE / "connect" / f"{room}.py") for room in ROOMS))
    assert names - NOT_ASYNCPGS == set(RELIED_UPON)
    for test in RELIED_UPON.values():
        assert test in globals()


def test_no_other_room_uses_a_private_name_of_a_connection() -> None:
    tests_of_others = (
        PACKAGE / "testing" / "pools" / "inside.py"
    )  # tests/testing/test_faults.py tries each of its names
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in ROOMS and path != tests_of_others:
            others_call_something_so, too = {"_connection"}, private_names(path)
            assert not too & set(RELIED_UPON) - others_call_something_so, path


async def test_libpqs_own_variables_change_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = {
        "PGHOST": "nowhere.invalid", "PGPORT": "1", "PGUSER": "nobody", "PGDATABASE": "none", "PGAPPNAME": "x",
        "PGSSLMODE": "verify-full", "PGSSLNEGOTIATION": "direct", "PGTARGETSESSIONATTRS": "standby",
        "PGOPTIONS": "-c work_mem=1MB", "PGSERVICE": "none", "PGGSSLIB": "none", "PGKRBSRVNAME": "none",
    }  # fmt: skip
    for name, value in nonsense.items():
        monkeypatch.setenv(name, value)
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        assert await pool.fetchval("SHOW work_mem") == "4MB"


async def test_lifetimes_differ_between_environments_of_one_snapshot(url: str) -> None:
    lifetimes = set[float]()
    for _ in range(2):
        random.seed(7)  # as it was when the snapshot was taken
        connector = Connector(DatabaseSettings(url=url), FixedCredentials(), ServerTraits(60.0, 3.0))
        lifetimes.add(connector._draw_expiry((0.0, 0.0))[0])
        connector.terminate()
    assert len(lifetimes) == 2
    assert all(1620 <= lifetime <= 1980 for lifetime in lifetimes)


async def test_detach_ends_a_proxy_and_hands_out_the_connection(pool: asyncpg.Pool) -> None:
    proxy = await pool.acquire()
    connection = proxy._detach()
    assert type(connection) is asyncpg.Connection, f"{ASYNCPG}: PoolConnectionProxy._detach() returns something else"
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        await proxy.fetchval("SELECT 1")
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_connection_can_be_lent_again_and_again(pool: asyncpg.Pool) -> None:
    proxy = await pool.acquire()
    holder = proxy._holder
    connection = proxy._detach()
    for _ in range(3):
        again = asyncpg.pool.PoolConnectionProxy(holder, connection)
        assert await again.fetchval("SELECT 1") == 1, f"{ASYNCPG}: PoolConnectionProxy(holder, connection)"
        again._detach()
    await connection.close()


async def test_a_release_ends_statements_cursors_and_transactions(pool: asyncpg.Pool) -> None:
    proxy = await pool.acquire()
    connection = proxy._detach()
    statement = await connection.prepare("SELECT 1")
    assert await statement.fetchval() == 1
    connection._pool_release_ctr += 1
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        await statement.fetchval()
    await connection.close()


async def test_a_connection_hands_its_proxy_to_callbacks(pool: asyncpg.Pool, eventually: Eventually) -> None:
    proxy = await pool.acquire()
    connection, heard = proxy._con, list[object]()
    assert connection._proxy is proxy, f"{ASYNCPG}: Connection._proxy"
    connection._proxy = "another"
    await connection.add_listener("channel", lambda of, *_: heard.append(of))
    await connection.execute("NOTIFY channel")
    await eventually(lambda: heard == ["another"])
    connection._proxy = proxy
    await proxy.reset()
    await pool.release(proxy)


async def test_what_belongs_to_a_connection_can_get_another_class(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection, connection.transaction() as _:
        statement = await connection.prepare("SELECT 1")
        cursor = statement.cursor()
        for resource in (connection.transaction(), statement, cursor, cursor.__aiter__(), await statement.cursor()):
            kind = type(resource)
            assert resource._connection is connection._con, f"{ASYNCPG}: {kind.__name__}._connection"
            resource.__class__ = type(kind.__name__, (kind,), {"__slots__": ()})
            if kind is not asyncpg.transaction.Transaction:
                assert resource._query == "SELECT 1", f"{ASYNCPG}: {kind.__name__}._query"


async def test_a_connection_remembers_a_transaction_that_did_not_begin(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        assert connection._con._top_xact is None, f"{ASYNCPG}: Connection._top_xact"
        await connection.transaction().start()
        await connection.execute("ROLLBACK")
        assert connection._con._top_xact is not None, f"{ASYNCPG}: Connection._top_xact"


async def test_a_connection_tells_that_a_statement_is_being_cancelled(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        assert connection._con._protocol._is_cancelling() is False
        with contextlib.suppress(TimeoutError):
            await connection.execute("SELECT pg_sleep(10)", timeout=0.02)
        assert connection._con._protocol._is_cancelling() is True, f"{ASYNCPG}: _protocol._is_cancelling()"
        assert await connection.fetchval("SELECT 1") == 1
        assert connection._con._protocol._is_cancelling() is False


async def test_a_connection_tells_that_a_fetch_is_running(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        section = connection._con._stmt_exclusive_section
        assert not section._acquired
        running = asyncio.create_task(connection.fetch("SELECT pg_sleep(0.02)"))
        await asyncio.sleep(0.005)
        assert section._acquired, f"{ASYNCPG}: _stmt_exclusive_section._acquired"
        await running
        assert not section._acquired


async def test_a_connection_has_a_transport_with_a_socket(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        raw = connection._con._transport.get_extra_info("socket")
        assert raw.fileno() >= 0, f"{ASYNCPG}: Connection._transport"


async def test_an_orphaned_connection_wakes_no_pool(pool: asyncpg.Pool) -> None:
    proxy = await pool.acquire()
    connection = proxy._detach()
    holder = connection._pool_holder()
    assert holder is not None, f"{ASYNCPG}: Connection._pool_holder"
    connection._pool_holder = None
    connection._aborted = True
    assert connection.is_closed(), f"{ASYNCPG}: Connection._aborted"
    connection._transport.abort()
    connection.terminate()
    assert holder._in_use is not None
    pool.terminate()


async def test_a_connection_keeps_its_listeners_by_channel(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        await connection.add_listener("channel", print)
        assert list(connection._con._listeners) == ["channel"], f"{ASYNCPG}: Connection._listeners"
        connection._con._listeners.clear()


async def test_a_number_goes_up_with_each_new_statement(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        await connection.fetchval("SELECT 1")
        before = asyncpg.connection._uid
        await connection.fetchval("SELECT 1")
        assert asyncpg.connection._uid == before, f"{ASYNCPG}: connection._uid counts statements that it knows already"
        await connection.fetchval("SELECT 2")
        assert asyncpg.connection._uid > before, f"{ASYNCPG}: connection._uid"


async def test_a_script_is_answered_with_its_last_tag(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        tag = await connection._con._protocol.query("RESET ALL;SELECT FROM generate_series(1, 3)", 1.0)
        assert tag == "SELECT 3", f"{ASYNCPG}: _protocol.query(sql, timeout)"


async def test_a_query_can_be_sent_without_a_timer_and_without_a_task(url: str) -> None:
    loop: Any = asyncio.get_running_loop()
    connection = await asyncpg.connect(url, command_timeout=60)
    timers = len(loop._scheduled)
    config = connection._config
    assert config.command_timeout == 60, f"{ASYNCPG}: Connection._config.command_timeout"
    query = connection._protocol.query("RESET ALL;SELECT FROM generate_series(1, 3)", None)
    connection._config = config._replace(command_timeout=None)
    answer = query.send(None)
    connection._config = config
    query.close()
    answer._asyncio_future_blocking = False
    assert len(loop._scheduled) == timers, f"{ASYNCPG}: _protocol.query(sql, None) has a timer"
    assert await answer == "SELECT 3", f"{ASYNCPG}: _protocol.query(sql, None).send(None)"
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_statements_go_through_two_methods(url: str) -> None:
    called = []

    class Heard(asyncpg.Connection):
        async def _get_statement(self, *arguments, **options):
            called.append("_get_statement")
            return await super()._get_statement(*arguments, **options)

        async def _do_execute(self, *arguments, **options):
            answer = await super()._do_execute(*arguments, **options)
            called.append("_do_execute")
            return answer

    connection = await asyncpg.connect(url, connection_class=Heard)
    assert await connection.fetchval("SELECT $1::int", 1) == 1
    assert called == ["_get_statement", "_do_execute"], f"{ASYNCPG}: how a statement is run"
    await connection.close()


async def test_a_statement_can_be_prepared_from_the_cache(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as proxy:
        names = set()
        for _ in range(2):
            statement = await proxy._con._prepare("SELECT $1::int AS n", use_cache=True)
            assert await statement.fetchval(1) == 1, f"{ASYNCPG}: Connection._prepare(use_cache=True)"
            names.add(statement.get_name())
        assert len(names) == 1, f"{ASYNCPG}: Connection._prepare(use_cache=True) prepares again"


async def test_a_connection_can_forget_the_statements_that_it_caches(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT 1") == 1
        await connection.execute("DEALLOCATE ALL")
        connection._con._drop_local_statement_cache()
        assert await connection.fetchval("SELECT 1") == 1, f"{ASYNCPG}: _drop_local_statement_cache"


async def test_a_connection_can_be_told_that_the_server_has_no_jit(url: str) -> None:
    connection = await asyncpg.connect(url)
    capabilities = connection._server_caps
    assert capabilities.jit is True, f"{ASYNCPG}: Connection._server_caps.jit"
    connection._server_caps = capabilities._replace(jit=False)
    await connection.execute("CREATE TYPE colour AS ENUM ('red')")
    assert await connection.fetchval("SELECT ARRAY['red']::colour[]") == ["red"]
    await connection.close()


async def test_isinstance_takes_every_connection_for_one_of_any_kind(pool: asyncpg.Pool) -> None:
    class Kind(asyncpg.Connection):
        pass

    async with pool.acquire() as connection:
        assert isinstance(connection._con, Kind), (
            f"{ASYNCPG}: the comment on ConnectionMeta in session.py is out of date"
        )


async def test_a_pool_that_failed_to_open_opens_silently_the_second_time(
    url_via_tcp_proxy: str, proxy: TcpProxy
) -> None:
    """So a pool is kept only once it opened."""
    proxy.refuse = True
    pool = asyncpg.create_pool(url_via_tcp_proxy, min_size=1, max_size=1)
    with pytest.raises((OSError, asyncpg.ConnectionDoesNotExistError)):
        await pool
    assert await pool is pool
    assert pool.get_size() == 0


async def test_a_connect_that_failed_is_tried_from_scratch(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as guarded:
        proxy.refuse = True
        with pytest.raises(ConnectFailedError):
            await guarded.ping()
        proxy.refuse = False
        assert await guarded.fetchval("SELECT 1") == 1


async def test_the_pool_is_made_with_a_min_size_of_one_and_a_max_size_of_pool_max(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    create_pool = asyncpg.create_pool

    def note(*arguments, **options):
        made.append(options)
        return create_pool(*arguments, **options)

    monkeypatch.setattr(asyncpg, "create_pool", note)
    async with GuardedPool(DatabaseSettings(url=url, pool_max=3)) as guarded:
        await guarded.ping()
    assert [(options["min_size"], options["max_size"]) for options in made] == [(1, 3)]


async def test_the_floor_maintenance_connects_without_being_asked(
    url: str, url_via_tcp_proxy: str, proxy: TcpProxy
) -> None:
    """What ours must not do."""
    async with asyncpg.create_pool(url_via_tcp_proxy, min_size=1, max_size=1) as pool:
        connection = await pool.acquire()
        bare = connection._con
        bare.terminate()
        for _ in range(100):
            await asyncio.sleep(0.005)
            if proxy.accepted == 2:
                break
        assert proxy.accepted == 2, f"{ASYNCPG}: it keeps no floor any more"


async def test_the_floor_maintenance_ends_without_a_log(
    url_via_tcp_proxy: str, proxy: TcpProxy, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    caplog.set_level(logging.INFO)
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as guarded:
        await guarded.ping()
        proxy.drop_all()
        await eventually(lambda: proxy.open_connections == 0)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert proxy.accepted == 1
        assert guarded._core.loop_pool.workers._connector._pool._pool._maintenance_task is None
    assert [record for record in caplog.records if "Executing" not in record.getMessage()] == []


async def test_a_server_that_does_not_know_the_timeouts_gets_none(
    url_via_tcp_proxy: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """As PostgreSQL before 14: the first connect is refused with SQLSTATE 42704, and nobody asks again."""
    known = ServerTraits.__init__

    def of_tomorrow(traits: ServerTraits, *timeouts: float) -> None:
        known(traits, *timeouts)
        traits.timeouts = {f"{name}_of_tomorrow": value for name, value in traits.timeouts.items()}

    monkeypatch.setattr(ServerTraits, "__init__", of_tomorrow)
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, idle_timeout_ms=100)) as guarded:
        assert await guarded.fetchval("SHOW idle_session_timeout") == "0"
        assert proxy.accepted == 5  # each of the four is refused by name
        assert guarded.stats()["connect_failures"] == 0
        await eventually(lambda: guarded.stats()["closed"] == 1)
        await guarded.ping()
        assert proxy.accepted == 6


async def test_the_schema_of_the_url_is_the_search_path(server: Cluster, role: str) -> None:
    url = server.url(user=role, schema='odd"one')
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        assert await pool.fetchval("SHOW search_path") == '"odd""one"'

"""`target_session_attrs`: each session is on a node of the kind that the URL asks for. A real hot standby."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.connect.node import NodeState, attempts, reported_state, suits
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest
from tests.support.eventually import eventually
from tests.support.hot_standby import Pair, hot_standby
from tests.support.speaker import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

WRITE = "INSERT INTO app_user DEFAULT VALUES"
TABLE = "CREATE TABLE app_user (id int GENERATED ALWAYS AS IDENTITY)"
IS_STANDBY = "SELECT pg_is_in_recovery()"
REFUSED = "target_session_attrs in the database URL requires"
NAME = "main.cluster.example"


class Pairs:
    """Makes one when it is needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._pair: Pair | None = None

    def get(self) -> Pair:
        self._pair = self._pair or self._stack.enter_context(hot_standby(TABLE))
        return self._pair

    def spend(self) -> Pair:
        """For a test that leaves no standby behind: the next one gets another pair."""
        pair = self.get()
        self._pair = None
        return pair


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield Pairs(stack)


@pytest.fixture
def pair(pairs: Pairs) -> Pair:
    return pairs.get()


@pytest.fixture
def name(pair: Pair) -> Iterator[TcpProxy]:
    """It leads to the standby, until its `target` is changed."""
    with TcpProxy(pair.standby.host, pair.standby.port) as name:
        yield name


def lead(name: TcpProxy, server: Cluster) -> None:
    name.target = (server.host, server.port)


def asks_for(kind: str, name: TcpProxy, pair: Pair, **others: Any) -> DatabaseSettings:
    return DatabaseSettings(url=pair.primary.url(port=name.port, target_session_attrs=kind), **others)


@pytest.mark.parametrize(
    ("kind", "on_primary", "on_standby"),
    [
        ("any", True, True),
        ("read-write", True, False),
        ("primary", True, False),
        ("read-only", False, True),
        ("standby", False, True),
        ("prefer-standby", True, True),
    ],
)
async def test_only_a_node_of_the_kind_that_the_url_asks_for_is_lent(pair, name, kind, on_primary, on_standby):
    for server, suitable in ((pair.primary, on_primary), (pair.standby, on_standby)):
        lead(name, server)
        async with GuardedPool(asks_for(kind, name, pair)) as pool:
            if suitable:
                assert await pool.fetchval(IS_STANDBY) == (server is pair.standby)
                assert pool.stats()["connects"] == 1
            else:
                with pytest.raises(ConnectFailedError, match=REFUSED):
                    await pool.ping()
                await eventually(lambda: name.open_connections == 0)


async def test_the_wrong_kind_of_node_is_a_failure_of_the_database_and_the_right_one_ends_it(pair, name):
    settings = asks_for("read-write", name, pair, breaker_fail_max=2, breaker_reset_timeout_ms=20)
    async with GuardedPool(settings) as pool:
        for state in ("closed", "open"):
            with pytest.raises(ConnectFailedError, match=REFUSED):
                await pool.ping()
            assert pool.stats()["circuit"] == state
        lead(name, pair.primary)
        await asyncio.sleep(0.02)
        assert not await pool.fetchval(IS_STANDBY)
        assert pool.stats()["circuit"] == "closed"


async def test_a_role_whose_transactions_are_read_only_is_no_writer(pair, name):
    lead(name, pair.primary)
    pair.primary.psql("CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on")
    url = pair.primary.url(user="reader", port=name.port)
    async with GuardedPool(DatabaseSettings(url=f"{url}?target_session_attrs=read-write")) as pool:
        with pytest.raises(ConnectFailedError, match=REFUSED):
            await pool.ping()
    async with GuardedPool(DatabaseSettings(url=f"{url}?target_session_attrs=read-only")) as pool:
        await pool.ping()


async def test_a_session_whose_node_has_changed_is_replaced_without_a_round_trip(pair, name):
    """The server reports it with the answer to a statement."""
    lead(name, pair.primary)
    heard = []
    settings = asks_for("read-write", name, pair, session_reset="never")
    async with GuardedPool(settings, on_event=heard.append) as pool:
        await pool.ping()
        await pool.execute("SET default_transaction_read_only = on")
        trips = name.round_trips
        await pool.ping()
        assert pool.stats()["connects"] == 2
        assert name.round_trips - trips == 4  # goodbye, login, probe, ping
    assert [event.reason for event in heard if event.name == "connection_replaced"] == ["wrong_node"]


async def test_a_ping_that_brings_the_news_counts_as_well(pair, name, later):
    lead(name, pair.primary)
    heard = []
    settings = asks_for("read-write", name, pair, session_reset="never")
    async with GuardedPool(settings, on_event=heard.append) as pool:
        await pool.ping()
        pair.primary.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
        try:
            later(1.1)
            with pytest.raises(ConnectFailedError, match=REFUSED):
                await pool.ping()
        finally:
            pair.primary.psql(
                "SET transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only;"
                " SELECT pg_reload_conf()"
            )
    assert [event.reason for event in heard if event.name == "connection_replaced"] == ["wrong_node"]


async def test_a_refused_write_costs_a_pool_that_asked_for_a_standby_no_session(pair, name, caplog):
    async with GuardedPool(asks_for("standby", name, pair)) as pool:
        for _ in range(2):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await pool.execute(WRITE)
            await at_rest(pool)
        assert pool.stats()["connects"] == 1
    assert caplog.records == []


# A server that reports nothing of itself, as before PostgreSQL 14, and a pooler, which reports what it once heard


@pytest.mark.parametrize(("kind", "suitable"), [("read-write", False), ("standby", True)])
async def test_a_server_that_does_not_report_its_kind_is_asked(kind, suitable):
    platform = Platform(lambda _: None, counts=lambda sql: 3 if "pg_is_in_recovery" in sql else 0)
    async with platform.serve() as url, GuardedPool(DatabaseSettings(url=f"{url}&target_session_attrs={kind}")) as pool:
        if suitable:
            await pool.execute("SELECT 1")
        else:
            with pytest.raises(ConnectFailedError, match=REFUSED):
                await pool.ping()
    assert platform.logins == 1
    assert sum("pg_is_in_recovery" in sql for sql in platform.asked) == 1


async def test_a_server_that_cannot_say_its_kind_is_a_failed_connect():
    platform = Platform(lambda sql: "42883" if "pg_is_in_recovery" in sql else None)
    async with (
        platform.serve() as url,
        GuardedPool(DatabaseSettings(url=f"{url}&target_session_attrs=primary")) as pool,
    ):
        with pytest.raises(ConnectFailedError, match="42883"):
            await pool.ping()


# One name, several addresses


class SecondAddress(TcpProxy):
    """A proxy on the port of another one, at another address of the machine."""

    host = "127.0.0.2"

    def __init__(self, first: TcpProxy, server: Cluster) -> None:
        super().__init__(server.host, server.port)
        self._first = first

    def _entered(self) -> SecondAddress:
        self.port = self._first.port
        self._thread.run(self._listen(), 10.0)
        return self


@pytest.fixture
def two_addresses(pair: Pair, name: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondAddress]:
    """NAME has the address of `name`, which leads to the standby, and then this one, which leads to the primary."""
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        hosts = [TcpProxy.host, SecondAddress.host] if host == NAME else [host]
        return [found for one in hosts for found in ask(one, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with SecondAddress(name, pair.primary) as second:
        yield second


def by_name(kind: str, name: TcpProxy) -> DatabaseSettings:
    url = f"postgresql://postgres@{NAME}:{name.port}/postgres?sslmode=disable&target_session_attrs={kind}"
    return DatabaseSettings(url=url)


@pytest.mark.parametrize("kind", ["read-write", "standby", "prefer-standby"])
async def test_each_address_of_a_name_is_tried(name, two_addresses, kind):
    async with GuardedPool(by_name(kind, name)) as pool:
        assert await pool.fetchval(IS_STANDBY) == (kind != "read-write")
        assert (name.open_connections, two_addresses.open_connections) == ((0, 1) if kind == "read-write" else (1, 0))


@pytest.mark.parametrize("kind", ["read-write", "prefer-standby"])
async def test_an_address_where_nobody_answers_is_passed_over(name, two_addresses, kind):
    await name.stop_listening()
    async with GuardedPool(by_name(kind, name)) as pool:
        assert not await pool.fetchval(IS_STANDBY)


async def test_where_no_address_suits_the_kind_is_the_reason(name, two_addresses):
    await two_addresses.stop_listening()
    async with GuardedPool(by_name("read-write", name)) as pool:
        with pytest.raises(ConnectFailedError, match=REFUSED):
            await pool.ping()


async def test_where_nobody_answers_that_is_the_reason(name, two_addresses):
    for proxy in (name, two_addresses):
        await proxy.stop_listening()
    async with GuardedPool(by_name("read-write", name)) as pool:
        with pytest.raises(ConnectFailedError, match="nothing listens"):
            await pool.ping()


async def test_a_missing_database_is_told_at_the_first_address(name, two_addresses):
    url = f"postgresql://postgres@{NAME}:{name.port}/missing?sslmode=disable&target_session_attrs=read-write"
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        with pytest.raises(ConnectFailedError, match="3D000"):
            await pool.ping()
    assert two_addresses.accepted == 0


# A failover


async def test_with_a_real_standby_the_second_call_after_a_failover_lands_on_the_new_writer(pairs):
    pair = pairs.spend()
    with TcpProxy(pair.primary.host, pair.primary.port) as name:
        async with (
            GuardedPool(DatabaseSettings(url=pair.primary.url(port=name.port))) as plain,
            GuardedPool(asks_for("read-write", name, pair)) as read_write,
            GuardedPool(asks_for("standby", name, pair)) as standby,
        ):
            for pool in (plain, read_write):
                await pool.execute(WRITE)
            await asyncio.to_thread(wait_for_rows, pair.standby, 2)
            await asyncio.to_thread(pair.primary.stop, "immediate")
            await eventually(lambda: name.open_connections == 0)
            lead(name, pair.standby)
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await plain.execute(WRITE)
            with pytest.raises(ConnectFailedError, match=REFUSED):
                await read_write.execute(WRITE)
            assert await standby.fetchval(IS_STANDBY)

            await asyncio.to_thread(pair.standby.psql, "SELECT pg_promote()")
            for pool in (plain, read_write):
                await pool.execute(WRITE)
                assert pool.stats()["circuit"] == "closed"
            assert await plain.fetchval("SELECT count(*) FROM app_user") == 4
            # the server reports its promotion with the answer to the next statement
            assert not await standby.fetchval(IS_STANDBY)
            with pytest.raises(ConnectFailedError, match=REFUSED):
                await standby.fetchval(IS_STANDBY)


def wait_for_rows(server: Cluster, count: int) -> None:
    deadline = time.monotonic() + 5.0
    while server.psql("SELECT count(*) FROM app_user") != str(count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The decisions


def test_a_node_that_reports_nothing_is_unknown() -> None:
    assert reported_state(object()) is None


@pytest.mark.parametrize("standby", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
def test_what_libpq_accepts(standby: bool, read_only: bool) -> None:
    state = NodeState(standby, read_only)
    assert suits("any", state)
    assert suits("read-only", state) == (not suits("read-write", state)) == (standby or read_only)
    assert suits("standby", state) == (not suits("primary", state)) == standby


def test_a_standby_is_looked_for_everywhere_before_anything_else_will_do() -> None:
    assert attempts("primary", ["a", "b"]) == [("a", "primary"), ("b", "primary")]
    assert attempts("prefer-standby", ["a"]) == [("a", "any")]
    assert attempts("prefer-standby", ["a", "b"]) == [("a", "standby"), ("b", "standby"), ("a", "any"), ("b", "any")]

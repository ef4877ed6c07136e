"""A session on a server that takes no writes is not kept, as the name may lead to one that does. A real hot standby."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.connect.read_only import REPLACE_INTERVAL, ReadOnlySessions
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITE = "INSERT INTO app_user DEFAULT VALUES"
REFUSED = asyncpg.ReadOnlySQLTransactionError


class Pair(NamedTuple):
    """Two servers, and the one name that leads to either."""

    standby: Cluster
    writer: Cluster


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    settings = {"wal_level": "replica"}
    with Cluster.start(18, settings=settings) as standby, Cluster.start(18, settings=settings) as writer:
        for cluster in (standby, writer):
            cluster.psql("CREATE TABLE app_user (id int GENERATED ALWAYS AS IDENTITY)")
        standby.stop()
        (standby.data_directory / "standby.signal").touch()
        standby.restart()
        yield Pair(standby, writer)


@pytest.fixture
def name(pair: Pair) -> Iterator[TcpProxy]:
    """It leads to the standby, until its `target` is changed."""
    with TcpProxy(pair.standby.host, pair.standby.port) as name:
        yield name


def settings_at(name: TcpProxy, pair: Pair, **knobs) -> DatabaseSettings:
    return DatabaseSettings(url=pair.writer.url(port=name.port), **knobs)


def fail_over(name: TcpProxy, pair: Pair) -> None:
    name.target = (pair.writer.host, pair.writer.port)


async def write_in_a_transaction(pool: GuardedPool) -> None:
    async with pool.transaction() as connection:
        await connection.execute(WRITE)


async def write_in_a_task_group(pool: GuardedPool) -> None:
    async with pool.acquire() as connection, asyncio.TaskGroup() as group:
        group.create_task(connection.execute(WRITE))


async def write_behind_an_error_of_ones_own(pool: GuardedPool) -> None:
    async with pool.acquire() as connection:
        try:
            await connection.execute(WRITE)
        except asyncpg.PostgresError as error:
            raise LookupError from error


@pytest.mark.parametrize("reset", ["always", "never"])
@pytest.mark.parametrize(
    "write",
    [
        lambda pool: pool.execute(WRITE),
        write_in_a_transaction,
        write_in_a_task_group,
        write_behind_an_error_of_ones_own,
    ],
    ids=["statement", "transaction", "task-group", "behind-another"],
)
async def test_after_a_failover_the_second_write_lands_on_the_writer(pair, name, reset, write, caplog):
    heard = []
    async with GuardedPool(settings_at(name, pair, session_reset=reset), on_event=heard.append) as pool:
        await pool.ping()
        fail_over(name, pair)
        with pytest.raises((REFUSED, ExceptionGroup, LookupError)):
            await write(pool)
        await write(pool)
        assert pool.stats()["connects"] == 2
        assert pool.stats()["circuit"] == "closed"
        assert [event.reason for event in heard if event.name in {"connection_closed", "connection_replaced"}] == [
            "read_only"
        ]
    assert ["read-only" in record.getMessage() for record in caplog.records] == [True]


async def test_every_session_of_the_pool_finds_the_writer(pair, name):
    async with GuardedPool(settings_at(name, pair, pool_max=3)) as pool:
        await asyncio.gather(*(pool.execute("SELECT pg_sleep(0.02)") for _ in range(3)))
        fail_over(name, pair)
        answers = await asyncio.gather(*(pool.execute(WRITE) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [REFUSED] * 3
        await asyncio.gather(*(pool.execute(WRITE) for _ in range(3)))


async def own_transaction(connection):
    async with connection.transaction(readonly=True):
        await connection.execute(WRITE)


async def own_transaction_in_sql(connection):
    await connection.execute("BEGIN READ ONLY")
    await connection.execute(WRITE)


async def own_default(connection):
    await connection.execute("SET default_transaction_read_only = on")
    await connection.execute(WRITE)


@pytest.mark.parametrize("block", [own_transaction, own_transaction_in_sql, own_default])
async def test_a_block_that_asked_for_it_costs_no_session(pair, block, caplog):
    async with GuardedPool(DatabaseSettings(url=pair.writer.url())) as pool:
        for _ in range(3):
            with pytest.raises(REFUSED):
                async with pool.acquire() as connection:
                    await block(connection)
            await pool.execute(WRITE)
        assert pool.stats()["connects"] == 1
    assert "standby" not in caplog.text
    assert "failover" not in caplog.text


async def test_writes_on_a_replica_do_not_cost_a_connect_each(pair, name, later, caplog):
    async with GuardedPool(settings_at(name, pair)) as pool:

        async def write_often() -> int:
            for _ in range(10):
                with pytest.raises(REFUSED):
                    await pool.execute(WRITE)
                await at_rest(pool)
            return pool.stats()["connects"]

        assert await write_often() == 2
        later(REPLACE_INTERVAL)
        assert await write_often() == 3
        assert await pool.fetchval("SELECT count(*) FROM app_user") == 0
    assert len(caplog.records) == 1


def test_a_session_is_worth_ending_unless_it_was_opened_just_now_in_place_of_another():
    sessions = ReadOnlySessions()
    assert sessions.worth_ending((5.0, 5.0), (5.0, 5.0))
    sessions.found((10.0, 10.0))
    assert sessions.worth_ending((5.0, 5.0), (10.1, 10.1))
    assert not sessions.worth_ending((10.1, 10.1), (10.9, 10.9))
    assert sessions.worth_ending((10.1, 10.1), (11.0, 11.0))

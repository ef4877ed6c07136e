"""Through a real PgBouncer in transaction mode, with fewer backends than clients."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import (
    ConfigurationError,
    ConnectFailedError,
    DatabaseSettings,
    DatabaseUnavailableError,
    GuardedPool,
)
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.rds.test_credentials import Vault
from tests.support.pgbouncer import PgBouncer
from tests.support.program import run

pytestmark = pytest.mark.debian

BACKENDS = 2
POOLS = 8
USER = "app"


@pytest.fixture(scope="module")
def bounced_server() -> Iterator[Cluster]:
    """A PostgreSQL with a table of everything that asyncpg has to look up."""
    with Cluster.start(18) as cluster:
        cluster.psql(
            f"""
            CREATE ROLE {USER} LOGIN; GRANT CREATE ON SCHEMA public TO {USER};
            CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad'); CREATE TYPE point3 AS (x int, y int, z int);
            CREATE TABLE person (
                id uuid PRIMARY KEY, number int NOT NULL, mood mood, moods mood[], tags text[], spot point3
            );
            GRANT ALL ON person TO {USER};
            """
        )
        yield cluster


@pytest.fixture
def bouncer(bounced_server: Cluster) -> Iterator[PgBouncer]:
    with PgBouncer(bounced_server, {USER: ""}, backends=BACKENDS) as bouncer:
        yield bouncer


@pytest.fixture
async def watcher(bounced_server: Cluster) -> AsyncIterator[Observer]:
    observer = Observer(bounced_server)
    yield observer
    await observer.close()


def settings(bouncer: PgBouncer, port: int | None = None, **knobs: Any) -> DatabaseSettings:
    url = bouncer.url(USER, port=port, pgbouncer="true")
    return DatabaseSettings(**{"url": url, "connect_timeout_ms": 10_000, "command_timeout_ms": 10_000, **knobs})


async def changing_statements(pool: GuardedPool, count: int, seed: int) -> int:
    """Statements of ever new texts, some in transactions, some of which fail; return how many went as they should."""
    chance = random.Random(seed)
    done = 0
    for number in range(count):
        kind = chance.randrange(8)
        key = uuid.UUID(int=chance.getrandbits(128))
        moods = chance.choices(["sad", "ok", "glad"], k=2)
        if kind == 0:
            row = await pool.fetchrow(f"SELECT $1::int AS a{number}, $2::text AS b", number, "x" * number)
            done += tuple(row.values()) == (number, "x" * number)
        elif kind == 1:
            done += await pool.fetchval(f"SELECT '{moods[0]}'::mood -- {number}") == moods[0]
        elif kind == 2:
            done += await pool.fetchval("SELECT $1::mood[]", moods) == moods
        elif kind == 3:
            done += tuple(await pool.fetchval(f"SELECT ($1, {number}, 3)::point3", 1)) == (1, number, 3)
        elif kind == 4:
            await pool.execute(
                "INSERT INTO person (id, number, mood, moods, tags) VALUES ($1, $2, $3, $4, $5)",
                key, number, moods[0], moods, ["a", "b"],
            )  # fmt: skip
            row = await pool.fetchrow("SELECT number, mood, moods, tags FROM person WHERE id = $1", key)
            done += tuple(row.values()) == (number, moods[0], moods, ["a", "b"])
        elif kind == 5:
            try:
                async with pool.transaction() as connection:
                    await connection.execute("INSERT INTO person (id, number) VALUES ($1, $2)", key, number)
                    await connection.execute("INSERT INTO person (id, number) VALUES ($1, $2)", key, number)
            except asyncpg.UniqueViolationError:
                done += await pool.fetchval("SELECT count(*) FROM person WHERE id = $1", key) == 0
        elif kind == 6:
            try:
                await pool.fetchval(f"SELECT {number} / $1::int", 0)
            except asyncpg.DivisionByZeroError:
                done += 1
        else:
            async with pool.transaction() as connection:
                await connection.execute("SET LOCAL work_mem = '1MB'")
                inside = await connection.fetchval("SELECT pg_backend_pid()")
                done += await connection.fetchval(f"SELECT pg_backend_pid() + {number}") == inside + number
    return done


async def test_thousands_of_changing_statements_share_two_backends(bouncer, watcher):
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        async with AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(GuardedPool(settings(bouncer, proxy.port))) for _ in range(POOLS)]
            done = await asyncio.gather(*(changing_statements(pool, 500, seed) for seed, pool in enumerate(pools)))
            assert done == [500] * POOLS
            assert [pool.stats()["connects"] for pool in pools] == [1] * POOLS
            assert await watcher.count(user=USER) <= BACKENDS
        assert proxy.named_statements == []


async def test_no_setting_leaks_into_a_backend(bouncer, bounced_server):
    """asyncpg, left alone, turns jit off on one backend, and on again on another."""
    bounced_server.psql(f"ALTER ROLE {USER} SET jit = on")
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(GuardedPool(settings(bouncer))) for _ in range(POOLS)]
        await asyncio.gather(*(pool.fetchval("SELECT 'ok'::mood") for pool in pools))

        everybody = asyncio.Barrier(BACKENDS)

        async def look(pool: GuardedPool) -> tuple[int, str]:
            async with pool.transaction() as connection:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                await everybody.wait()
                return pid, await connection.fetchval("SHOW jit")

        seen = dict(await asyncio.gather(*(look(pool) for pool in pools[:BACKENDS])))
    assert list(seen.values()) == ["on"] * BACKENDS


async def test_what_one_borrower_began_and_left_keeps_no_backend_from_the_others(bouncer):
    """More clients than backends, each with a statement that was parsed and then never run."""
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(GuardedPool(settings(bouncer))) for _ in range(BACKENDS + 1)]
        for pool in pools:
            async with pool.acquire() as connection:
                with pytest.raises(asyncpg.DataError):
                    await connection.fetchval("SELECT $1::int", "one")
        async with asyncio.timeout(5.0):
            await asyncio.gather(*(pool.fetchval("SELECT $1::int", 1) for pool in pools))


async def test_cancelled_borrowers_keep_no_backend_from_the_others(bouncer):
    chance = random.Random(5)
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(GuardedPool(settings(bouncer))) for _ in range(POOLS)]
        await asyncio.gather(*(pool.ping() for pool in pools))
        for _ in range(12):
            tasks = [asyncio.create_task(pool.fetchval("SELECT $1::int", 1)) for pool in pools]
            await asyncio.sleep(chance.random() * 0.004)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        async with asyncio.timeout(10.0):
            assert await asyncio.gather(*(pool.fetchval("SELECT $1::int", 7) for pool in pools)) == [7] * POOLS


async def test_a_statement_that_takes_too_long_is_cancelled_behind_the_pooler_too(bouncer, watcher, eventually):
    async with GuardedPool(settings(bouncer, command_timeout_ms=200)) as pool:
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep($1)", 30)
        assert await pool.fetchval("SELECT $1::int", 1) == 1
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%' AND usename = $1"
    )
    await eventually(lambda: _is_zero(watcher, running))


async def _is_zero(watcher: Observer, count: str) -> bool:
    return await watcher.fetchval(count, USER) == 0


async def until_it_works(pool: GuardedPool) -> None:
    """Call as a Lambda would be called: each call ends soon, and some day one succeeds."""
    async with asyncio.timeout(15.0):
        while True:
            try:
                async with asyncio.timeout(3.0):
                    assert await pool.fetchval("SELECT $1::int", 1) == 1
            except (DatabaseUnavailableError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_restart_of_the_pooler_is_left_behind(bouncer):
    knobs = {
        "connect_timeout_ms": 1000,
        "command_timeout_ms": 500,
        "breaker_fail_max": 1,
        "breaker_reset_timeout_ms": 50,
    }
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(GuardedPool(settings(bouncer, **knobs))) for _ in range(POOLS)]
        await asyncio.gather(*(until_it_works(pool) for pool in pools))
        await asyncio.to_thread(bouncer.stop)
        for pool in pools:
            with pytest.raises(DatabaseUnavailableError):
                await pool.fetchval("SELECT $1::int", 1)
            assert pool.stats()["circuit"] == "open"
        await asyncio.to_thread(bouncer.start)
        await asyncio.gather(*(until_it_works(pool) for pool in pools))
        assert {pool.stats()["circuit"] for pool in pools} == {"closed"}


async def test_a_restart_between_two_calls_goes_unnoticed(bouncer):
    async with GuardedPool(settings(bouncer)) as pool:
        await pool.ping()
        await asyncio.to_thread(bouncer.stop)
        await asyncio.to_thread(bouncer.start)
        assert await pool.fetchval("SELECT $1::int", 1) == 1
        assert pool.stats()["connect_failures"] == 0


async def test_a_pause_ends_each_call_in_time_and_a_resume_ends_the_pause(bouncer, watcher):
    knobs = {
        "connect_timeout_ms": 1000,
        "command_timeout_ms": 300,
        "breaker_fail_max": 2,
        "breaker_reset_timeout_ms": 50,
    }
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(GuardedPool(settings(bouncer, **knobs))) for _ in range(POOLS)]
        await asyncio.gather(*(until_it_works(pool) for pool in pools))
        await asyncio.to_thread(bouncer.admin, "PAUSE")
        for pool in pools[:2]:
            async with asyncio.timeout(8.0):
                while pool.stats()["circuit"] == "closed":
                    with pytest.raises((TimeoutError, DatabaseUnavailableError)):
                        await pool.fetchval("SELECT $1::int", 1)
        await asyncio.to_thread(bouncer.admin, "RESUME")
        await asyncio.gather(*(until_it_works(pool) for pool in pools))
        assert {pool.stats()["circuit"] for pool in pools} == {"closed"}
        assert await watcher.count(user=USER) <= BACKENDS


SWALLOWED = "idle_session_timeout, idle_in_transaction_session_timeout, client_connection_check_interval, search_path"


@pytest.fixture(params=["", SWALLOWED], ids=["refuses parameters", "swallows parameters"])
def unannounced_bouncer(request: pytest.FixtureRequest, bounced_server: Cluster) -> Iterator[PgBouncer]:
    with PgBouncer(bounced_server, {USER: ""}, backends=BACKENDS, ignored=request.param) as bouncer:
        yield bouncer


async def test_a_pooler_that_no_setting_announces_is_noticed_and_gives_no_foreign_row(
    unannounced_bouncer, watcher, caplog
):
    made = DatabaseSettings(url=unannounced_bouncer.url(USER), connect_timeout_ms=10_000, command_timeout_ms=10_000)

    async def ask(pool: GuardedPool, mine: int) -> list[int]:
        """The same texts from all, so that each client's first named statement would be another one's second."""
        rows = []
        for number in range(60):
            rows.append(await pool.fetchval(f"SELECT {mine} * 1000 + $1::int", number))
            rows.append(await pool.fetchval("SELECT $1::int", mine))
        return rows

    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(GuardedPool(made)) for _ in range(6)]
        answers = await asyncio.gather(*(ask(pool, mine) for mine, pool in enumerate(pools, start=1)))
        for mine, rows in enumerate(answers, start=1):
            assert rows == [value for number in range(60) for value in (mine * 1000 + number, mine)]
        assert {pool.stats()["connect_failures"] for pool in pools} == {0}
        assert await watcher.count(user=USER) <= BACKENDS
    told = [message for message in caplog.messages if "behind a transaction pooler" in message]
    assert len(told) == len(pools)
    assert all("LAMBDA_DATABASE_PROXY_PROFILE=true, or pgbouncer=true" in message for message in told)


SIX_ENVIRONMENTS = """
import asyncio, os
from asyncdb_guard import DatabaseSettings, GuardedPool

async def ask(mine):
    own = 0
    async with GuardedPool() as pool:
        for number in range(300):
            own += await pool.fetchval(f"SELECT {mine} * 1000 + $1::int", number) == mine * 1000 + number
            own += await pool.fetchval("SELECT $1::int", mine) == mine
    return own

for mine in range(6):
    if os.fork() == 0:
        os.write(1, b"%d\\n" % asyncio.run(ask(mine)))
        os._exit(0)
for _ in range(6):
    os.wait()
"""


def test_six_environments_behind_a_pooler_that_swallows_parameters_read_3600_rows_of_their_own(bounced_server):
    """Without any setting but the URL."""
    with PgBouncer(bounced_server, {USER: ""}, backends=BACKENDS, ignored=SWALLOWED) as bouncer:
        assert run(SIX_ENVIRONMENTS, DATABASE_URL=bouncer.url(USER)).split() == ["600"] * 6


async def test_an_unannounced_pooler_cannot_give_a_search_path(unannounced_bouncer):
    async with GuardedPool(DatabaseSettings(url=unannounced_bouncer.url(USER, schema="other"))) as pool:
        with pytest.raises((ConfigurationError, ConnectFailedError)):
            await pool.ping()


async def test_an_unannounced_pooler_cannot_choose_a_kind_of_node(unannounced_bouncer):
    settings = DatabaseSettings(url=unannounced_bouncer.url(USER, target_session_attrs="read-write"))
    async with GuardedPool(settings) as pool:
        with pytest.raises(ConfigurationError, match="target_session_attrs in the database URL can only be any"):
            await pool.ping()


async def test_the_host_of_a_proxy_turns_the_profile_on(bouncer):
    made = DatabaseSettings(
        url=f"postgresql://{USER}@127.0.0.1:1/postgres", proxy_host=f"{bouncer.host}:{bouncer.port}"
    )
    async with GuardedPool(made) as pool:
        assert await pool.fetchval("SELECT $1::int", 1) == 1


async def test_a_password_that_the_pooler_refuses_is_fetched_anew(bounced_server):
    """PgBouncer says 08P01 and not 28P01."""
    vault = Vault("before", "after")
    with PgBouncer(bounced_server, {USER: "after"}, auth_type="scram-sha-256") as bouncer:
        async with GuardedPool(settings(bouncer), credentials=vault) as pool:
            assert await pool.fetchval("SELECT current_user") == USER
    assert len(vault.refused) == 2

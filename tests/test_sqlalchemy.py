"""SQLAlchemy's ORM over the guarded pool: the same bound, the same breaker, and no second pool."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import DDL, JSON, ForeignKey, String, event, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from asyncdb_guard import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    ConnectFailedError,
    Connection,
    DatabaseSettings,
    DatabaseUnavailableError,
    GuardedPool,
    PoolClosedError,
    StatementTimeoutError,
)
from asyncdb_guard.sqlalchemy import create_async_engine
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.support.bound import allow, assert_accounts_balance, at_rest
from tests.support.pgbouncer import PgBouncer


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    facts: Mapped[Any] = mapped_column(JSONB, default=dict)
    notes: Mapped[Any] = mapped_column(JSON, default=list)
    books: Mapped[list[Book]] = relationship()


class Book(Base):
    __tablename__ = "book"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))


PID = text("SELECT pg_backend_pid()")


@pytest.fixture
async def pool(url: str, role: str) -> AsyncIterator[GuardedPool]:
    """Two sessions at most, in a schema of their own."""
    async with GuardedPool(DatabaseSettings(url=f"{url}?schema={role}", pool_max=2)) as pool:
        yield pool


@pytest.fixture
def engine(pool: GuardedPool) -> AsyncEngine:
    return create_async_engine(pool)


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncEngine:
    """The engine, with the tables."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return engine


@pytest.fixture
def sessions(tables: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(tables, expire_on_commit=False)


# What the ORM does


async def test_objects_are_stored_and_found(sessions):
    async with sessions.begin() as session:
        author = Author(name="Ada", facts={"born": 1815, "tags": ["math"]}, notes=[None, "x"], books=[Book(), Book()])
        session.add(author)
    async with sessions() as session:
        query = select(Author).options(selectinload(Author.books))
        found = (await session.scalars(query)).one()
    assert (found.name, found.facts, found.notes, len(found.books)) == (
        "Ada", {"born": 1815, "tags": ["math"]}, [None, "x"], 2,
    )  # fmt: skip


async def test_a_session_that_is_not_committed_leaves_nothing(sessions):
    async with sessions() as session:
        session.add(Author(name="Ada"))
        await session.flush()
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Author)) == 0


async def test_a_savepoint_undoes_only_what_came_after_it(sessions):
    async with sessions.begin() as session:
        session.add(Author(name="Ada"))
        await session.flush()
        savepoint = await session.begin_nested()
        session.add(Author(name="Ada"))
        with pytest.raises(IntegrityError) as caught:
            await session.flush()
        await savepoint.rollback()
        session.add(Author(name="Grace"))
    assert isinstance(caught.value.orig.__cause__, asyncpg.UniqueViolationError)
    assert caught.value.orig.sqlstate == "23505"
    async with sessions() as session:
        assert set(await session.scalars(select(Author.name))) == {"Ada", "Grace"}


async def test_rows_are_streamed_through_a_cursor_of_the_server(tables, pool, observer):
    async with tables.connect() as connection:
        result = await connection.stream(text("SELECT n FROM generate_series(1, 500) n"))
        seen = [await anext(result.scalars())]
        running = await observer.fetchval(
            "SELECT state FROM pg_stat_activity WHERE query LIKE '%generate_series%n' LIMIT 1"
        )
        seen += [number async for number in result.scalars()]
    assert running == "idle in transaction"
    assert seen == list(range(1, 501))
    await at_rest(pool)


async def test_a_stream_that_is_left_early_frees_its_place(tables, pool):
    async with tables.connect() as connection:
        async for _ in await connection.stream(text("SELECT n FROM generate_series(1, 500) n")):
            break
    await at_rest(pool)
    await pool.ping()


async def test_many_rows_go_in_one_statement(sessions, pool):
    async with sessions.begin() as session:
        session.add_all(Author(name=f"Author {number}") for number in range(200))
    connects = pool.stats()["connects"]
    async with sessions() as session:
        connection = await session.connection()
        await connection.execute(Author.__table__.insert(), [{"name": "A"}, {"name": "B"}])
        await session.commit()
        assert await session.scalar(select(func.count()).select_from(Author)) == 202
    assert pool.stats()["connects"] == connects


async def test_isolation_and_autocommit_are_set_for_one_borrow(tables):
    async with tables.connect() as connection:
        serializable = await connection.execution_options(isolation_level="SERIALIZABLE")
        assert await serializable.scalar(text("SHOW transaction_isolation")) == "serializable"
    async with tables.connect() as connection:
        assert await connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    async with tables.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM author"))


async def test_a_type_that_the_driver_must_look_up_is_read(tables):
    async with tables.begin() as connection:
        await connection.execute(text("CREATE TYPE mood AS ENUM ('calm')"))
        assert await connection.scalar(text("SELECT 'calm'::mood")) == "calm"


async def test_a_changed_table_is_read_anew_by_all_sessions(tables, pool, server, role):
    async def read(both: asyncio.Barrier | None = None) -> list[Any]:
        async with tables.connect() as connection:
            if both is not None:
                await both.wait()  # each reads on a session of its own
            return [tuple(row) for row in await connection.execute(text("SELECT * FROM changing"))]

    async def read_on_both() -> list[Any]:
        both = asyncio.Barrier(2)
        return await asyncio.gather(read(both), read(both))

    async with tables.begin() as connection:
        await connection.execute(text("CREATE TABLE changing AS SELECT 1 AS a"))
    assert await read_on_both() == [[(1,)], [(1,)]]
    async with tables.begin() as connection:
        await connection.execute(DDL("ALTER TABLE changing ADD b text DEFAULT 'x'"))
    assert await read_on_both() == [[(1, "x")], [(1, "x")]]
    server.psql(f"ALTER TABLE {role}.changing ADD c int")
    with pytest.raises(DBAPIError, match="cached statement plan is invalid"):
        await read()  # what PostgreSQL says once, as to SQLAlchemy's own pool
    assert await read_on_both() == [[(1, "x", None)], [(1, "x", None)]]
    assert pool.stats()["circuit"] == "closed"


# The bound, on every path


@pytest.mark.slow
async def test_500_requests_over_5_sessions_never_need_one_more(server, role, url):
    allow(server, url, 5)
    async with GuardedPool(DatabaseSettings(url=f"{url}?schema={role}", pool_max=5, connect_timeout_ms=30_000)) as pool:
        engine = create_async_engine(pool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        sessions = async_sessionmaker(engine)

        async def request(number: int) -> None:
            async with sessions() as session, session.begin():
                session.add(Author(name=f"Author {number}"))
                await session.flush()

        await asyncio.gather(*map(request, range(500)))
        async with sessions() as session:
            assert await session.scalar(select(func.count()).select_from(Author)) == 500
        await at_rest(pool)
        # a session that a busy server does not reset in half a second is replaced; the role's limit refuses a sixth
        assert pool.stats()["connect_failures"] == 0
        assert_accounts_balance(pool)


async def test_requests_that_are_cancelled_anywhere_free_their_places(server, role, url):
    allow(server, url, 2)
    settings = DatabaseSettings(url=url, pool_max=2, connect_timeout_ms=30_000, breaker_fail_max=1)
    async with GuardedPool(settings) as pool:
        engine = create_async_engine(pool)
        await (await engine.connect()).close()

        async def request() -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(text("SELECT pg_sleep(0.002)"))

        for number in range(60):
            tasks = [asyncio.create_task(request()) for _ in range(4)]
            await asyncio.sleep(number * 0.0002)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        await at_rest(pool)
        async with engine.connect() as one, engine.connect() as other:
            assert await one.scalar(PID) != await other.scalar(PID)
        assert pool.stats()["circuit"] == "closed"
        await at_rest(pool)
        assert_accounts_balance(pool)


async def test_a_cancelled_statement_costs_no_session(engine, pool, eventually, observer):
    async with engine.connect() as connection:
        pid = await connection.scalar(PID)

    async def request() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(60)"))

    task = asyncio.create_task(request())
    await eventually(lambda: observer.fetchval("SELECT true FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%'"
                                               " AND state = 'active' AND pid <> pg_backend_pid()"))  # fmt: skip
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with engine.connect() as connection:
        assert await connection.scalar(PID) == pid
    assert pool.stats()["circuit"] == "closed"


async def test_a_connection_that_was_forgotten_frees_its_place(url):
    async with GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=5000)) as pool:
        engine = create_async_engine(pool)
        connection = await engine.connect()
        await connection.execute(PID)
        del connection
        with pytest.warns(SAWarning, match="garbage collector"):
            gc.collect()
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1


async def test_an_invalidated_connection_is_replaced(engine, pool):
    async with engine.connect() as connection:
        pid = await connection.scalar(PID)
        await connection.invalidate()
    async with engine.connect() as connection:
        assert await connection.scalar(PID) != pid
    assert pool.stats()["circuit"] == "closed"


async def test_a_driver_connection_that_is_kept_stops_working(engine):
    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert await raw.fetchval("SELECT 1") == 1
    with pytest.raises(asyncpg.InterfaceError):
        await raw.fetchval("SELECT 1")


async def test_a_connection_that_the_application_has_closed_itself_is_released_once(engine, pool):
    async with engine.connect() as connection:
        (await connection.get_raw_connection()).dbapi_connection.close()
    await at_rest(pool)
    assert_accounts_balance(pool)


async def test_what_a_session_sets_does_not_reach_the_next_one(url):
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        engine = create_async_engine(pool)
        async with engine.begin() as connection:
            await connection.execute(text("SET statement_timeout = '1h'"))
        async with engine.connect() as connection:
            assert await connection.scalar(text("SHOW statement_timeout")) != "1h"


async def test_the_pool_may_serve_others_beside_the_engine(engine, pool):
    async with engine.connect() as connection:
        assert await connection.scalar(text("""SELECT '{"a": 1}'::jsonb AS a""").columns(a=JSONB)) == {"a": 1}
    assert await pool.fetchval("""SELECT '{"a": 1}'::jsonb""") == '{"a": 1}'


def test_an_engine_follows_the_pool_to_another_event_loop(url):
    pool = GuardedPool(DatabaseSettings(url=url))
    engine = create_async_engine(pool)

    async def ask() -> int:
        async with engine.connect() as connection:
            return await connection.scalar(PID)

    assert asyncio.run(ask()) != asyncio.run(ask())
    asyncio.run(pool.close())


# What the breaker sees, and what the application


async def test_a_dead_database_opens_the_circuit_and_its_errors_arrive_unwrapped():
    settings = DatabaseSettings(url="postgresql://u@127.0.0.1:1/d", breaker_fail_max=2)
    async with GuardedPool(settings) as pool:
        engine = create_async_engine(pool)
        sessions = async_sessionmaker(engine)
        for kind in (ConnectFailedError, ConnectFailedError, CircuitOpenError):
            with pytest.raises(DatabaseUnavailableError) as caught:
                async with sessions() as session:
                    await session.execute(PID)
            assert type(caught.value) is kind
        assert caught.value.retry_after is not None


async def test_a_full_pool_says_so_in_time(url):
    async with GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=100)) as pool:
        engine = create_async_engine(pool)
        async with engine.connect():
            with pytest.raises(AcquireTimeoutError):
                await engine.connect()
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1


async def test_a_closed_pool_says_so(url):
    pool = GuardedPool(DatabaseSettings(url=url))
    await pool.close()
    with pytest.raises(PoolClosedError):
        await create_async_engine(pool).connect()


@pytest.mark.parametrize("within", ["a statement", "a pause"])
async def test_a_session_lost_in_a_block_is_a_failure_and_a_disconnect(url, server, role, observer, within):
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1)) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as connection:
            pid = await connection.scalar(PID)
            statement = text("SELECT 1")
            if within == "a statement":
                statement = text("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")
            else:
                await observer.terminate(user=role)
            with pytest.raises(DBAPIError) as caught:
                await connection.execute(statement)
            assert caught.value.connection_invalidated
        assert pool.stats()["circuit"] == "open"
        assert pid is not None
        with pytest.raises(CircuitOpenError):
            await engine.connect()
        await at_rest(pool)


async def test_errors_of_statements_say_nothing_against_the_database(engine, pool):
    for _ in range(5):
        with pytest.raises(ProgrammingError):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT nothing FROM nowhere"))
    assert pool.stats()["circuit"] == "closed"


async def test_a_statement_that_outlives_its_bound_is_a_failure(url):
    settings = DatabaseSettings(url=url, breaker_fail_max=1, command_timeout_ms=50)
    async with GuardedPool(settings) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        with pytest.raises(StatementTimeoutError):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(5)"))
        assert pool.stats()["circuit"] == "open"
        await at_rest(pool)


@contextlib.asynccontextmanager
async def locked_table(engine: AsyncEngine, server: Cluster, role: str) -> AsyncIterator[None]:
    """A table that no statement can even be prepared for."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE locked (a int)"))
    locker = await server.connect()
    await locker.execute(f"BEGIN; LOCK TABLE {role}.locked")
    try:
        yield
    finally:
        await locker.close()


async def read_locked(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT * FROM locked"))


async def test_a_statement_that_cannot_even_be_prepared_in_time_is_a_failure_too(url, server, role):
    settings = DatabaseSettings(url=f"{url}?schema={role}", breaker_fail_max=1, command_timeout_ms=60)
    async with GuardedPool(settings) as pool:
        engine = create_async_engine(pool)
        async with locked_table(engine, server, role):
            with pytest.raises(StatementTimeoutError):
                await read_locked(engine)
        assert pool.stats()["circuit"] == "open"


async def test_a_statement_that_an_administrator_cancels_is_no_failure(
    engine, pool, server, role, eventually, observer
):
    async with locked_table(engine, server, role):
        reader = asyncio.create_task(read_locked(engine))
        waiting = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT * FROM locked' AND wait_event_type = 'Lock'"
        pid = await eventually(lambda: observer.fetchval(waiting))
        await observer.fetchval("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(DBAPIError) as caught:
            await reader
    assert caught.value.orig.sqlstate == "57014"
    assert pool.stats()["circuit"] == "closed"


async def test_a_connection_goes_back_when_a_listener_of_the_application_fails(engine, pool):
    async with engine.connect():
        pass

    @event.listens_for(engine.sync_engine, "connect")
    def refuse(*_arguments: object) -> None:
        raise KeyError("a bug")

    for _ in range(4):
        with pytest.raises(KeyError):
            await engine.connect()
    await at_rest(pool)
    await pool.ping()


# Options


@pytest.mark.parametrize(
    "option",
    [
        {"pool_size": 5},
        {"max_overflow": 1},
        {"pool_pre_ping": True},
        {"connect_args": {}},
        {"native_inet_types": False},
    ],
)
def test_an_option_of_another_pool_is_refused_with_what_to_set(option):
    with pytest.raises(ConfigurationError, match=f"^{next(iter(option))} is not an option here: "):
        create_async_engine(GuardedPool(), **option)


def test_all_such_options_are_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        create_async_engine(GuardedPool(), pool_size=5, pool_timeout=1, echo=False)
    assert len(caught.value.faults) == 2


def test_an_engine_costs_no_look_at_the_settings_and_its_url_says_nothing():
    engine = create_async_engine(GuardedPool())
    assert str(engine.url) == "postgresql+asyncdb_guard://"
    assert engine.dialect.driver == "asyncpg"


async def test_options_of_sqlalchemy_reach_it(pool):
    seen = []

    def loads(value: str) -> str:
        seen.append(value)
        return "own"

    engine = create_async_engine(pool, json_deserializer=loads)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT '[1]'::jsonb AS a").columns(a=JSONB)) == "own"
    assert seen == ["[1]"]


async def test_a_codec_for_json_that_every_borrower_gets_is_refused(url):
    async def init(connection: Connection) -> None:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async with GuardedPool(DatabaseSettings(url=url), init=init) as pool:
        with pytest.raises(
            ConfigurationError, match="sets a codec for json or jsonb, which SQLAlchemy converts itself"
        ):
            await create_async_engine(pool).connect()
        await at_rest(pool)


# Behind a pooler


@pytest.mark.debian
async def test_behind_a_pooler_no_backend_is_kept_and_no_statement_is_named(server, role, observer):
    with PgBouncer(server, {role: ""}, backends=2) as bouncer:
        settings = DatabaseSettings(url=bouncer.url(role), proxy_profile=True, pool_max=8, connect_timeout_ms=10_000)
        async with GuardedPool(settings) as pool:
            engine = create_async_engine(pool)

            async def request(number: int) -> None:
                async with engine.begin() as connection:
                    found = await connection.scalar(text(f"SELECT :number ::int + {number % 7}"), {"number": number})
                    assert found == number + number % 7

            await asyncio.gather(*map(request, range(200)))
            await at_rest(pool)
            held = [one for one in pool._core.loop_pool.connections.idle if one.needs_cleanup]
            assert held == []
            assert await observer.count(user=role) <= 2


async def test_a_slow_database_is_waited_for_no_longer_than_the_bound(url_via_tcp_proxy, proxy):
    settings = DatabaseSettings(url=url_via_tcp_proxy, connect_timeout_ms=100)
    async with GuardedPool(settings) as pool:
        engine = create_async_engine(pool)
        proxy.go_deaf()
        with pytest.raises(AcquireTimeoutError):
            await engine.connect()


async def test_the_log_leads_to_the_applications_code(url, caplog):
    async with (
        GuardedPool(DatabaseSettings(url=url, slow_statement_ms=15, hold_warning_ms=15)) as pool,
        AsyncSession(create_async_engine(pool)) as session,
    ):
        await session.execute(text("SELECT pg_sleep(0.03), :a"), {"a": "an argument"})
        rows = await session.stream(text("SELECT pg_sleep(0.03)"))
        assert len(await rows.all()) == 1
    lines = [line for line in caplog.messages if "pg_sleep" in line or "held" in line]
    assert len(lines) == 3, "a block that was held, and two statements"
    for line in lines:
        assert "test_sqlalchemy.py:" in line
        assert "in test_the_log_leads_to_the_applications_code" in line
        assert "an argument" not in line

"""What counts against the database: each row of `judge`'s table, met by a real server's own errors.

The breaker starts with one failure of the two that open it. So a failure opens the circuit, a success clears the
count, and a neutral end leaves it at one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import pytest
from pydantic import SecretStr

from asyncdb_guard import DatabaseSettings, GuardedPool, clock
from asyncdb_guard.errors import (
    AcquireTimeoutError,
    ConnectFailedError,
    ConnectTimeoutError,
    DeadlineExceededError,
)
from asyncdb_guard.failures import FailureKind, Verdict
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.support.eventually import eventually
from tests.support.odd_errors import WithANumber, WithoutACause, WithoutASqlstate
from tests.support.speaker import message, refusal, speaker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SUCCESS, FAILURE, NEUTRAL = Verdict.SUCCESS, Verdict.FAILURE, Verdict.NEUTRAL
SEEN_AS = {("closed", 0): SUCCESS, ("open", 2): FAILURE, ("closed", 1): NEUTRAL}


class World(NamedTuple):
    """What a block may need besides its connection."""

    server: Cluster
    observer: Observer

    async def ended(self, pid: int) -> None:
        """Wait until the session is gone, while our own event loop runs."""
        absent = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
        await eventually(lambda: self.observer.fetchval(absent, pid))

    def ended_unseen(self, pid: int) -> None:
        """Wait until the session is gone, while our own event loop stands still, as in a freeze."""
        deadline = time.monotonic() + 10.0
        while self.server.psql(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"):
            assert time.monotonic() < deadline, "the session stays"

    def terminate_unseen(self, pid: int) -> None:
        self.server.psql(f"SELECT pg_terminate_backend({pid}, 5000)")


@pytest.fixture
def world(server, observer):
    return World(server, observer)


def settings(url: str, **knobs) -> DatabaseSettings:
    return DatabaseSettings(url=url, **{"breaker_fail_max": 2} | knobs)


async def verdict_on(pool: GuardedPool, use: Callable[[], Awaitable[object]]) -> tuple[Verdict, BaseException | None]:
    """What the pool's breaker has made of one use of the pool, and the error that came out."""
    breaker = pool._core.breaker
    breaker.failed(breaker.admit(clock.now()), clock.now(), FailureKind.ANSWERED, alone=False)
    raised = None
    try:
        await use()
    except (Exception, asyncio.CancelledError) as error:
        raised = error
    return SEEN_AS[pool.stats()["circuit"], breaker.failures], raised


# What may happen in a block.


async def nothing(connection, world):
    await connection.execute("SELECT 1")


async def session_gone_unnoticed(connection, world):
    await world.observer.fetchval("SELECT pg_terminate_backend($1, 5000)", connection.get_server_pid())
    await eventually(connection.is_closed)


async def session_lost_and_the_error_swallowed(connection, world):
    with contextlib.suppress(asyncpg.PostgresError):
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def session_closed_by_the_borrower(connection, world):
    await connection.close()


async def session_terminated_by_the_borrower(connection, world):
    connection.terminate()


async def timeout_of_the_callers_own(connection, world):
    await connection.execute("SELECT pg_sleep(9)", timeout=0.01)


async def the_same_for_rows(connection, world):
    await connection.fetch("SELECT pg_sleep($1)", 9, timeout=0.01)


async def the_same_of_none_at_all(connection, world):
    await connection.fetchval("SELECT pg_sleep($1)", 9, timeout=0)


async def the_same_for_a_prepared_statement(connection, world):
    statement = await connection.prepare("SELECT pg_sleep($1)")
    await statement.fetchrow(9, timeout=0.01)


async def the_same_for_many(connection, world):
    await connection.executemany("SELECT pg_sleep($1)", [(9,)], timeout=0.01)


async def the_same_for_a_cursor(connection, world):
    async with connection.transaction():
        async for _ in connection.cursor("SELECT pg_sleep($1)", 9, timeout=0.01):
            pass


async def the_same_for_a_copy(connection, world):
    await connection.copy_from_query("SELECT pg_sleep(9)", output=lambda _: None, timeout=0.01)


async def timeout_of_the_callers_own_that_is_longer(connection, world):
    await connection.fetch("SELECT pg_sleep(9)", timeout=0.05)


async def a_lock_that_nobody_lets_go(connection, world):
    table = await two_rows(connection, world)
    await world.observer.execute(f"BEGIN; LOCK {table}")
    try:
        await connection.fetch(f"SELECT * FROM {table}")
    finally:
        await world.observer.execute("ROLLBACK")


async def statement_timeout_of_the_settings(connection, world):
    await connection.execute("SELECT pg_sleep(9)")


async def statement_timeout_in_a_task_group(connection, world):
    async with asyncio.TaskGroup() as group:
        group.create_task(statement_timeout_of_the_settings(connection, world))


async def timeout_of_the_callers_own_in_a_task_group(connection, world):
    async with asyncio.TaskGroup() as group:
        group.create_task(timeout_of_the_callers_own(connection, world))


async def key_error_in_a_task_group(connection, world):
    async with asyncio.TaskGroup() as group:
        group.create_task(key_error(connection, world))


async def unique_violation_in_a_task_group(connection, world):
    async with asyncio.TaskGroup() as group:
        group.create_task(unique_violation(connection, world))


async def statement_timeout_of_the_server(connection, world):
    await connection.execute("SET statement_timeout = 10; SELECT pg_sleep(9)")


def raises(sqlstate):
    """A statement that ends with this SQLSTATE, whatever its cause: the server answered, and the session lives."""

    async def block(connection, world):
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$")

    block.__name__ = f"answer_{sqlstate}"
    return block


async def statement_meanwhile(connection, meanwhile):
    """Do something to a statement while it runs."""
    pid = connection.get_server_pid()
    statement = asyncio.create_task(connection.execute("SELECT pg_sleep(9)"))
    await asyncio.sleep(0.02)
    await meanwhile(pid)
    await statement


async def statement_cancelled_by_an_administrator(connection, world):
    await statement_meanwhile(connection, lambda pid: world.observer.fetchval("SELECT pg_cancel_backend($1)", pid))


async def administrator_ends_the_session_in_a_statement(connection, world):
    await statement_meanwhile(connection, lambda pid: world.observer.fetchval("SELECT pg_terminate_backend($1)", pid))


async def the_same_after_a_long_block(connection, world):
    await connection.execute("SELECT pg_sleep(0.12)")
    await administrator_ends_the_session_in_a_statement(connection, world)


async def session_lost_between_statements(connection, world):
    await session_gone_unnoticed(connection, world)
    await connection.execute("SELECT 1")


async def session_lost_unseen(connection, world):
    world.terminate_unseen(connection.get_server_pid())
    await connection.execute("SELECT 1")


async def session_lost_half_seen(connection, world):
    world.terminate_unseen(connection.get_server_pid())
    await asyncio.sleep(0)  # reads the FATAL message, and not yet the end of the stream
    await asyncio.sleep(0)
    await connection.execute("SELECT 1")


async def session_lost_in_a_transaction(connection, world):
    async with connection.transaction():
        await session_lost_unseen(connection, world)


async def unique_violation(connection, world):
    await connection.execute("CREATE TEMP TABLE t (a int UNIQUE)")
    await connection.execute("INSERT INTO t VALUES (1), (1)")


async def two_rows(connection, world) -> str:
    """A table with two rows, for two sessions to quarrel over."""
    schema = await connection.fetchval("SELECT current_user")
    await connection.execute(f"CREATE TABLE {schema}.t AS SELECT a, 0 AS b FROM generate_series(1, 2) a")
    return f"{schema}.t"


async def serialization_failure(connection, world):
    table = await two_rows(connection, world)
    async with connection.transaction(isolation="repeatable_read"):
        await connection.fetch(f"SELECT * FROM {table}")
        await world.observer.execute(f"UPDATE {table} SET b = 1")
        await connection.execute(f"UPDATE {table} SET b = 2")


async def deadlock(connection, world):
    table = await two_rows(connection, world)
    await world.observer.execute(f"ALTER ROLE {table.removesuffix('.t')} SET deadlock_timeout = '10ms'")
    async with asyncio.timeout(10), connection.transaction():
        await connection.execute(f"UPDATE {table} SET b = 1 WHERE a = 1")
        # the observer waits longer before it looks for a deadlock, so that it is ours that finds one
        await world.observer.execute(f"BEGIN; UPDATE {table} SET b = 1 WHERE a = 2")
        other = asyncio.create_task(world.observer.execute(f"UPDATE {table} SET b = 1 WHERE a = 1"))
        try:
            await connection.execute(f"UPDATE {table} SET b = 1 WHERE a = 2")
        finally:
            await connection.execute("ROLLBACK")
            await other
            await world.observer.execute("ROLLBACK")


async def insufficient_resources(connection, world):
    await world.observer.execute(
        f"GRANT SET ON PARAMETER temp_file_limit TO {await connection.fetchval('SELECT current_user')}"
    )
    await connection.execute("SET temp_file_limit = 0; SET work_mem = '64kB'")
    await connection.execute("CREATE TEMP TABLE t AS SELECT n FROM generate_series(1, 20000) n ORDER BY -n")


async def pause_seen(connection, world):
    await world.ended(await connection.fetchval("SELECT pg_backend_pid()"))
    await eventually(connection.is_closed)
    await connection.execute("SELECT 1")


async def pause_unseen(connection, world):
    world.ended_unseen(await connection.fetchval("SELECT pg_backend_pid()"))
    await connection.execute("SELECT 1")


async def pause_in_a_transaction_seen(connection, world):
    async with connection.transaction():
        await pause_seen(connection, world)


async def pause_in_a_transaction_unseen(connection, world):
    await connection.execute("BEGIN")
    await pause_unseen(connection, world)


async def own_asyncio_timeout(connection, world):
    async with asyncio.timeout(0.02):
        await connection.execute("SELECT pg_sleep(9)")


async def own_wait_for(connection, world):
    await asyncio.wait_for(connection.execute("SELECT pg_sleep(9)"), 0.02)


async def own_http_call_refused(connection, world):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        await asyncio.open_connection(*held.getsockname())


async def own_http_call_timed_out(connection, world):
    with socket.create_server(("127.0.0.1", 0)) as deaf, socket.create_connection(deaf.getsockname()) as call:
        call.settimeout(0.01)
        call.recv(1)


async def callback_of_the_driver_fails(connection, world):
    async def rows():
        yield b"1\n"
        raise ConnectionResetError("the source of the rows is gone")

    await connection.execute("CREATE TEMP TABLE t (a int)")
    await connection.copy_to_table("t", source=rows())


async def copy_from_no_file(connection, world):
    await connection.execute("CREATE TEMP TABLE t (a int)")
    await connection.copy_to_table("t", source="/there/is/no/such/file")


async def copy_to_no_file(connection, world):
    await connection.copy_from_query("SELECT 1", output="/there/is/no/such/file")


async def key_error(connection, world):
    raise KeyError("the caller's own")


async def cancellation(connection, world):
    asyncio.get_running_loop().call_later(0.02, asyncio.current_task().cancel)
    await connection.execute("SELECT pg_sleep(9)")


async def two_statements_at_once(connection, world):
    await asyncio.gather(connection.execute("SELECT pg_sleep(0.05)"), connection.execute("SELECT 1"))


async def argument_of_the_wrong_type(connection, world):
    await connection.fetchval("SELECT $1::int", "one")


async def error_of_the_callers_from_one_of_the_servers(connection, world):
    try:
        await unique_violation(connection, world)
    except asyncpg.UniqueViolationError as error:
        raise asyncpg.RaiseError("the caller's own words") from error


async def own_deadline_spent_in_a_statement(connection, world):
    await connection.execute("SELECT pg_sleep(0.06)")
    raise DeadlineExceededError("The trigger's time ended while a statement was running.")


async def own_deadline_that_left_little(connection, world):
    raise DeadlineExceededError("The trigger's time ended while a statement was running.")


def nested(depth):
    error = ExceptionGroup("group", [KeyError()])
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def odd(name, error):
    """A block that ends with an error which raises when it is looked at."""

    async def block(connection, world):
        raise error

    block.__name__ = name
    return block


BRIEF = {"idle_timeout_ms": 100}
SHORT = {"command_timeout_ms": 20}
LOST, TIMED_OUT, COMPLAINT = asyncpg.ConnectionDoesNotExistError, TimeoutError, asyncpg.InterfaceError

ROWS = [
    (nothing, SUCCESS, None, {}),
    (session_gone_unnoticed, FAILURE, None, {}),
    (session_lost_and_the_error_swallowed, FAILURE, None, {}),
    (session_closed_by_the_borrower, SUCCESS, None, {}),
    (session_terminated_by_the_borrower, SUCCESS, None, {}),
    (insufficient_resources, SUCCESS, asyncpg.ConfigurationLimitExceededError, {}),
    *(
        (raises(sqlstate), SUCCESS, asyncpg.PostgresError, {})
        for sqlstate in ("08006", "25006", "53100", "53200", "53300", "54001", "57P01", "57P03", "58030", "XX000")
    ),
    (administrator_ends_the_session_in_a_statement, FAILURE, LOST, {}),
    (the_same_after_a_long_block, FAILURE, LOST, BRIEF),
    (pause_seen, NEUTRAL, COMPLAINT, BRIEF),
    (pause_unseen, NEUTRAL, LOST, BRIEF),
    (pause_in_a_transaction_seen, NEUTRAL, COMPLAINT, BRIEF),
    (pause_in_a_transaction_unseen, NEUTRAL, LOST, BRIEF),
    (statement_timeout_of_the_server, SUCCESS, asyncpg.QueryCanceledError, {}),
    (statement_cancelled_by_an_administrator, SUCCESS, asyncpg.QueryCanceledError, {}),
    (unique_violation, SUCCESS, asyncpg.UniqueViolationError, {}),
    (serialization_failure, SUCCESS, asyncpg.SerializationError, {}),
    (deadlock, SUCCESS, asyncpg.DeadlockDetectedError, {}),
    (error_of_the_callers_from_one_of_the_servers, SUCCESS, asyncpg.RaiseError, {}),
    (statement_timeout_of_the_settings, FAILURE, TIMED_OUT, SHORT),
    (statement_timeout_in_a_task_group, FAILURE, ExceptionGroup, SHORT),
    (a_lock_that_nobody_lets_go, FAILURE, TIMED_OUT, {"command_timeout_ms": 100}),
    (timeout_of_the_callers_own_that_is_longer, FAILURE, TIMED_OUT, SHORT),
    (timeout_of_the_callers_own, NEUTRAL, TIMED_OUT, {}),
    (timeout_of_the_callers_own_in_a_task_group, NEUTRAL, ExceptionGroup, {}),
    (the_same_for_rows, NEUTRAL, TIMED_OUT, {}),
    (the_same_of_none_at_all, NEUTRAL, TIMED_OUT, {}),
    (the_same_for_a_prepared_statement, NEUTRAL, TIMED_OUT, {}),
    (the_same_for_many, NEUTRAL, TIMED_OUT, {}),
    (the_same_for_a_cursor, NEUTRAL, TIMED_OUT, {}),
    (the_same_for_a_copy, NEUTRAL, TIMED_OUT, {}),
    (odd("a_number_for_a_sqlstate", WithANumber("odd")), SUCCESS, WithANumber, {}),
    (odd("a_sqlstate_that_raises", WithoutASqlstate("odd")), SUCCESS, WithoutASqlstate, {}),
    (odd("a_cause_that_raises", WithoutACause()), NEUTRAL, WithoutACause, {}),
    (odd("groups_nested_deeply", nested(500)), NEUTRAL, ExceptionGroup, {}),
    (key_error_in_a_task_group, NEUTRAL, ExceptionGroup, {}),
    (unique_violation_in_a_task_group, SUCCESS, ExceptionGroup, {}),
    (own_deadline_spent_in_a_statement, FAILURE, DeadlineExceededError, {"handler_budget_ms": 100}),
    (own_deadline_that_left_little, NEUTRAL, DeadlineExceededError, {}),
    (session_lost_between_statements, FAILURE, COMPLAINT, {}),
    (session_lost_unseen, FAILURE, LOST, {}),
    (session_lost_half_seen, FAILURE, asyncpg.InternalClientError, {}),
    (session_lost_in_a_transaction, FAILURE, COMPLAINT, {}),
    (own_asyncio_timeout, NEUTRAL, TIMED_OUT, {}),
    (own_wait_for, NEUTRAL, TIMED_OUT, {}),
    (own_http_call_refused, NEUTRAL, ConnectionRefusedError, {}),
    (own_http_call_timed_out, NEUTRAL, TIMED_OUT, {}),
    (callback_of_the_driver_fails, NEUTRAL, ConnectionResetError, {}),
    (copy_from_no_file, NEUTRAL, FileNotFoundError, {}),
    (copy_to_no_file, NEUTRAL, FileNotFoundError, {}),
    (key_error, NEUTRAL, KeyError, {}),
    (cancellation, NEUTRAL, asyncio.CancelledError, {}),
    (two_statements_at_once, NEUTRAL, COMPLAINT, {}),
    (argument_of_the_wrong_type, SUCCESS, asyncpg.DataError, {}),
]


@pytest.mark.parametrize(
    ("block", "verdict", "error", "knobs"),
    [pytest.param(*row, id=row[0].__name__) for row in ROWS],
)
@pytest.mark.slow
async def test_the_end_of_a_block_is_judged(url, world, block, verdict, error, knobs):
    async with GuardedPool(settings(url, **knobs)) as pool:
        await pool.ping()

        async def use():
            async with pool.acquire() as connection:
                await block(connection, world)

        seen, raised = await verdict_on(pool, use)
        assert isinstance(raised, error or type(None)), repr(raised)
        assert seen is verdict


async def connect_verdict(
    url: str, verdict: Verdict, sqlstate: str, text: str, *, credentials=None, **knobs
) -> ConnectFailedError:
    """A connect that the server refuses with this SQLSTATE is judged so."""
    async with GuardedPool(settings(url, **knobs), credentials=credentials) as pool:
        seen, raised = await verdict_on(pool, pool.ping)
    assert isinstance(raised, ConnectFailedError), repr(raised)
    assert (raised.__cause__.sqlstate, seen) == (sqlstate, verdict)
    assert text in str(raised.__cause__)
    return raised


async def test_the_roles_own_statement_timeout_is_the_servers_answer(url, role, server):
    server.psql(f"ALTER ROLE {role} SET statement_timeout = '200ms'")
    async with GuardedPool(settings(url)) as pool:
        await pool.ping()
        seen, raised = await verdict_on(pool, lambda: pool.execute("SELECT pg_sleep(9)"))
    assert isinstance(raised, asyncpg.QueryCanceledError)
    assert seen is SUCCESS


@pytest.mark.parametrize("sqlstate", ["XX000", "58000", "55000", "53400", "57P04", "08004", "0A000", "99999"])
async def test_any_refusal_of_a_connect_is_a_failure(sqlstate):
    async with speaker(refusal(sqlstate)) as url:
        await connect_verdict(url, FAILURE, sqlstate, "no")


@pytest.mark.parametrize("sqlstate", ["22023", "42704"])
async def test_a_startup_parameter_that_is_refused_is_our_own_wrong_setting(sqlstate):
    async with speaker(refusal(sqlstate)) as url:
        await connect_verdict(url, SUCCESS, sqlstate, "no")


async def test_a_database_that_the_role_may_not_connect_to_is_the_servers_answer(server, role):
    server.psql(f"CREATE DATABASE {role}")
    try:
        server.psql(f"REVOKE CONNECT ON DATABASE {role} FROM public")
        await connect_verdict(server.url(database=role, user=role), SUCCESS, "42501", "permission denied")
    finally:
        server.psql(f"DROP DATABASE {role}")


async def test_a_refused_trial_does_not_close_the_circuit(later):
    async with (
        speaker(refusal("XX000", "EMAXCONNSESSION")) as url,
        GuardedPool(settings(url, breaker_fail_max=1)) as pool,
    ):
        for _ in range(2):
            with pytest.raises(ConnectFailedError):
                await pool.ping()
            assert pool.stats()["circuit"] == "open"
            later(1000)


LOGGED_IN, READY = message(b"R", bytes(4)), message(b"Z", b"I")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param([message(b"R", b"")], Exception, id="a-login-request-without-a-number"),
        pytest.param([message(b"R", b"\0\0\0\x63")], asyncpg.InterfaceError, id="a-login-that-the-driver-lacks"),
        pytest.param([message(b"Z")], Exception, id="an-empty-ready"),
        pytest.param([LOGGED_IN, READY], AttributeError, id="no-parameters"),
        pytest.param([message(b"S", b"server_version\0garbage\0"), LOGGED_IN, READY], ValueError, id="no-version"),
        pytest.param([message(b"S", b"client_encoding\0\xff\xfe\0")], Exception, id="no-text"),
        pytest.param([b"HTTP/1.1 400 Bad Request\r\n\r\n"], Exception, id="http"),
        pytest.param([refusal(b"99999 \n" + b"A" * 5000)], asyncpg.PostgresError, id="a-refusal-with-no-sqlstate"),
        pytest.param([], Exception, id="nothing"),
    ],
)
async def test_what_is_no_answer_of_a_postgresql_is_a_failure(said, error):
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the driver's protocol breaks in a callback
    async with speaker(*said) as url, GuardedPool(settings(url)) as pool:
        seen, raised = await verdict_on(pool, pool.ping)
    assert isinstance(raised, ConnectFailedError)
    assert isinstance(raised.__cause__, error), repr(raised.__cause__)
    assert seen is FAILURE


async def test_a_role_that_has_reached_its_limit_is_a_failure(url, role, server):
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    await connect_verdict(url, FAILURE, "53300", "for role")


async def test_an_unknown_database_is_the_servers_answer(server, role):
    await connect_verdict(server.url(database="nowhere", user=role), SUCCESS, "3D000", "nowhere")


async def test_a_role_that_may_not_log_in_is_the_servers_answer(url, role, server):
    server.psql(f"ALTER ROLE {role} NOLOGIN")
    await connect_verdict(url, SUCCESS, "28000", "not permitted to log in")


async def test_nobody_listening_is_a_failure():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"postgresql://user@127.0.0.1:{held.getsockname()[1]}/db"
        async with GuardedPool(settings(url)) as pool:
            seen, raised = await verdict_on(pool, pool.ping)
    assert isinstance(raised.__cause__, ConnectionRefusedError)
    assert seen is FAILURE


@pytest.mark.parametrize(
    ("knobs", "timeout", "verdict"),
    [
        pytest.param({"connect_timeout_ms": 50}, None, FAILURE, id="within-the-whole-timeout"),
        pytest.param({"connect_timeout_ms": 5000}, 0.05, NEUTRAL, id="within-a-small-remainder"),
    ],
)
async def test_a_server_that_does_not_answer_a_connect(proxy, url_via_tcp_proxy, knobs, timeout, verdict):
    proxy.deaf = True
    async with GuardedPool(settings(url_via_tcp_proxy, **knobs)) as pool:
        seen, raised = await verdict_on(pool, lambda: pool.ping(timeout=timeout))
    assert type(raised) is ConnectTimeoutError
    assert seen is verdict


async def test_local_exhaustion_is_neutral(url):
    async with GuardedPool(settings(url)) as pool, pool.acquire():
        seen, raised = await verdict_on(pool, lambda: pool.ping(timeout=0.02))
        assert type(raised) is AcquireTimeoutError
        assert seen is NEUTRAL


# What a server of its own is needed for: few places, passwords, and it may be ended.

PLACES = 6  # one of them for superusers, one for pg_use_reserved_connections


@pytest.fixture(scope="module", params=[16, 18], ids=["pg16", "pg18"])
def island(request):
    reserved = {"superuser_reserved_connections": "1", "reserved_connections": "1"}
    with Cluster.start(request.param, max_connections=PLACES, auth="scram-sha-256", settings=reserved) as cluster:
        cluster.psql("CREATE ROLE visitor LOGIN PASSWORD 'right'")
        yield cluster


@pytest.mark.parametrize(
    ("taken", "text"),
    [
        pytest.param(PLACES - 2, "pg_use_reserved_connections", id="reserved-for-the-privileged"),
        pytest.param(PLACES - 1, "SUPERUSER", id="reserved-for-superusers"),
        pytest.param(PLACES, "too many clients", id="full"),
    ],
)
async def test_a_full_server_is_a_failure_whatever_it_says(island, taken, text):
    guests = [await island.connect() for _ in range(taken)]
    try:
        await connect_verdict(island.url(user="visitor", password="right"), FAILURE, "53300", text)
    finally:
        for guest in guests:
            await guest.close()


class Provider:
    """Logs in with these passwords, one after the other, and remembers which of them was refused."""

    def __init__(self, *passwords: str) -> None:
        self.passwords = list(passwords)
        self.refused = []

    async def complete(self, target, *, refused=None):
        self.refused.append(refused and refused.password.get_secret_value())
        return replace(target, password=SecretStr(self.passwords.pop(0)))


async def test_a_wrong_password_in_the_url_is_the_servers_answer(island):
    error = await connect_verdict(island.url(user="visitor", password="wrong"), SUCCESS, "28P01", "password")
    assert "wrong" not in str(error)


async def test_a_wrong_password_of_a_provider_is_fetched_anew_and_then_a_failure(island):
    provider = Provider("wrong", "wrong still")
    await connect_verdict(island.url(user="visitor"), FAILURE, "28P01", "password", credentials=provider)
    assert provider.refused == [None, "wrong"]


async def test_a_password_that_was_fetched_anew_in_time_is_a_success(island):
    provider = Provider("wrong", "right")
    async with GuardedPool(settings(island.url(user="visitor")), credentials=provider) as pool:
        assert await verdict_on(pool, pool.ping) == (SUCCESS, None)
    assert provider.refused == [None, "wrong"]


async def test_any_other_answer_to_a_provider_is_the_servers(island):
    provider = Provider("right")
    url = island.url(database="nowhere", user="visitor")
    await connect_verdict(url, SUCCESS, "3D000", "nowhere", credentials=provider)


async def test_a_fault_of_a_provider_is_neutral(island):
    async with GuardedPool(settings(island.url(user="visitor")), credentials=Provider()) as pool:
        seen, raised = await verdict_on(pool, pool.ping)
    assert isinstance(raised.__cause__, IndexError)
    assert seen is NEUTRAL


async def test_a_crash_is_a_failure_and_so_is_the_recovery(island):
    """One backend dies by SIGKILL: the postmaster ends all others, and takes nobody until they are gone."""
    slow, victim = await island.connect(), await island.connect()
    slow_pid, victim_pid = slow.get_server_pid(), victim.get_server_pid()
    async with GuardedPool(settings(island.url())) as pool:
        running = asyncio.create_task(verdict_on(pool, lambda: pool.execute("SELECT pg_sleep(9)")))
        await eventually(lambda: pool.stats()["lent"] == 1)
        os.kill(slow_pid, signal.SIGSTOP)
        try:
            os.kill(victim_pid, signal.SIGKILL)
            seen, raised = await running
            assert (type(raised), seen) == (asyncpg.ConnectionDoesNotExistError, FAILURE)
            await connect_verdict(island.url(), FAILURE, "57P03", "in recovery mode")
        finally:
            os.kill(slow_pid, signal.SIGCONT)
            slow.terminate()
            victim.terminate()

    async def up_again():
        try:
            await (await island.connect()).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    await eventually(up_again, within=15.0)


async def test_a_server_that_shuts_down_is_a_failure(island):
    last = await island.connect()
    os.kill(island.postmaster_pid, signal.SIGTERM)  # smart: it waits for the last client
    try:
        await connect_verdict(island.url(), FAILURE, "57P03", "shutting down")
    finally:
        await last.close()
        await asyncio.to_thread(island.restart)


async def test_a_server_that_shuts_down_under_a_statement_is_a_failure(island):
    async with GuardedPool(settings(island.url())) as pool:

        async def use():
            async with pool.acquire() as connection:
                await statement_meanwhile(connection, lambda _: asyncio.to_thread(island.stop, "fast"))

        try:
            seen, raised = await verdict_on(pool, use)
        finally:
            await asyncio.to_thread(island.restart)
    assert isinstance(raised.__cause__, asyncpg.AdminShutdownError)
    assert seen is FAILURE

"""One pool over many event loops: it follows its caller, its old session goes, and nothing is left to warn about."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from asyncdb_guard import DatabaseSettings, GuardedPool, PoolClosedError, PoolInUseError
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

PID = "SELECT pg_backend_pid()"


@pytest.fixture
def pool(url: str) -> GuardedPool:
    return GuardedPool(DatabaseSettings(url=url))


@pytest.fixture
def sessions(server: Cluster, role: str) -> Callable[[], int]:
    """How many sessions the role has on the server, asked from a loop of its own."""

    async def count() -> int:
        observer = Observer(server)
        try:
            return len(await observer.sessions(user=role))
        finally:
            await observer.close()

    return lambda: asyncio.run(count())


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param


def test_each_asyncio_run_gets_a_session_that_ends_with_its_loop(
    pool: GuardedPool, sessions: Callable[[], int]
) -> None:
    pids = set()
    for _ in range(3):
        pids.add(asyncio.run(pool.fetchval(PID)))
        assert sessions() == 0
    assert len(pids) == 3


def test_a_runner_with_uvloop_ends_its_session_too(pool: GuardedPool, sessions: Callable[[], int]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(pool.ping())
        assert sessions() == 1
    assert sessions() == 0


def test_a_loop_that_was_just_closed_leaves_its_session_to_the_next_use(
    pool: GuardedPool, sessions: Callable[[], int]
) -> None:
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pool.ping())
        loop.close()  # without the care that asyncio.run takes
        assert sessions() == 1
        gc.collect()  # a ResourceWarning would come now
    asyncio.run(pool.close())
    assert sessions() == 0


def test_a_session_that_was_reset_while_no_loop_ran_gives_way(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    pool = GuardedPool(DatabaseSettings(url=url_via_tcp_proxy))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.ping())
    loop.close()
    (session,) = pool._core.loop_pool.connections.all
    proxy.reset_all()
    while not session.readable():
        os.sched_yield()
    asyncio.run(pool.ping())
    assert len(proxy.startups) == 2
    gc.collect()  # a ResourceWarning would come now


def test_a_borrow_that_is_forgotten_after_its_loop_hurts_nobody(
    pool: GuardedPool, sessions: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    async def borrow() -> Any:
        return await pool.acquire()

    loop = asyncio.new_event_loop()
    borrowed = loop.run_until_complete(borrow())
    loop.close()
    with asyncio.Runner() as runner:
        pid = runner.run(pool.fetchval(PID))
        del borrowed
        gc.collect()
        assert runner.run(pool.fetchval(PID)) == pid
    assert sessions() == 0
    assert caplog.records == []


def test_a_pool_whose_loop_has_ended_has_nothing_to_abandon(pool: GuardedPool, sessions: Callable[[], int]) -> None:
    """As at the end of a process that a signal interrupts."""
    asyncio.run(pool.ping())
    pool._core.abandon()
    asyncio.run(pool.ping())
    assert sessions() == 0


def test_a_loop_that_only_rests_gives_way(pool: GuardedPool, sessions: Callable[[], int]) -> None:
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    for _ in range(3):
        for loop in (first, second):
            loop.run_until_complete(pool.ping())
            assert sessions() == 1
    asyncio.run(pool.close())
    assert sessions() == 0
    for loop in (first, second):
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_a_loop_closed_in_the_middle_of_a_block_hurts_nobody_after_it(
    pool: GuardedPool, sessions: Callable[[], int], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    borrowed = asyncio.Event()

    async def keep() -> None:
        async with pool.acquire():
            borrowed.set()
            await asyncio.Event().wait()

    async def start() -> None:
        tasks.append(asyncio.create_task(keep()))
        await borrowed.wait()

    tasks: list[asyncio.Task[None]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # the test is rude, asyncio says so

    other = new_loop()
    other.run_until_complete(pool.ping())
    assert sessions() == 1
    other.run_until_complete(pool.close())
    other.close()
    assert sessions() == 0
    with suppress(RuntimeError):  # its loop is closed
        tasks.pop().get_coro().close()  # type: ignore[union-attr]
    gc.collect()


@pytest.fixture
def loop_of_another_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_second_running_loop_is_refused_and_the_first_is_not_touched(
    pool: GuardedPool, sessions: Callable[[], int], loop_of_another_thread: asyncio.AbstractEventLoop
) -> None:
    theirs = asyncio.run_coroutine_threadsafe(pool.fetchval(PID), loop_of_another_thread).result(5)
    statement = pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.2)")
    running = asyncio.run_coroutine_threadsafe(statement, loop_of_another_thread)
    with pytest.raises(PoolInUseError, match="Create one GuardedPool for each thread"):
        asyncio.run(pool.ping())
    assert running.result(5) == theirs
    assert sessions() == 1


def test_a_pool_closed_from_another_loop_ends_its_session_on_its_own(
    pool: GuardedPool, sessions: Callable[[], int], loop_of_another_thread: asyncio.AbstractEventLoop
) -> None:
    asyncio.run_coroutine_threadsafe(pool.ping(), loop_of_another_thread).result(5)
    asyncio.run(pool.close())
    assert sessions() == 0


def test_never_two_sessions_however_the_loops_change(pool: GuardedPool, server: Cluster, role: str) -> None:
    peak = 0
    done = threading.Event()

    async def watch() -> None:
        nonlocal peak
        observer = Observer(server)
        while not done.is_set():
            peak = max(peak, len(await observer.sessions(user=role)))
        await observer.close()

    watcher = threading.Thread(target=lambda: asyncio.run(watch()))
    watcher.start()
    try:
        for _ in range(30):
            asyncio.run(pool.ping())
            loop = asyncio.new_event_loop()
            loop.run_until_complete(pool.ping())
            loop.close()
    finally:
        done.set()
        watcher.join()
        asyncio.run(pool.close())
    assert peak == 1


@pytest.mark.debian
def test_a_tls_session_leaves_nothing_behind_on_a_loop_that_was_just_closed(tls_server: tuple[Cluster, str]) -> None:
    server, authority = tls_server
    url = server.url(sslmode="verify-full", sslrootcert=authority, application_name="loops")
    pool = GuardedPool(DatabaseSettings(url=url))

    async def count() -> int:
        observer = Observer(server)
        try:
            return len(await observer.sessions(application_name="loops"))
        finally:
            await observer.close()

    for _ in range(2):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pool.ping())
        loop.close()
        gc.collect()
    asyncio.run(pool.ping())
    assert asyncio.run(count()) == 0


def test_a_pool_that_was_only_entered_on_a_loop_now_closed_still_works(pool: GuardedPool) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.__aenter__())
    loop.close()
    asyncio.run(pool.ping())


@pytest.mark.parametrize("attempt", range(3))
async def test_function_scoped_loops_share_a_module_wide_pool(
    attempt: int, url: str, shared: dict[str, GuardedPool]
) -> None:
    pool = shared.setdefault("pool", GuardedPool(DatabaseSettings(url=url)))
    assert await pool.fetchval("SELECT $1::int", attempt) == attempt


@pytest.fixture(scope="module")
def shared() -> dict[str, GuardedPool]:
    return {}


def test_a_forgotten_pool_ends_its_session_when_it_is_collected(url: str, sessions: Callable[[], int]) -> None:
    async def forget() -> None:
        pool = GuardedPool(DatabaseSettings(url=url, idle_timeout_ms=60_000))
        await pool.ping()
        del pool

    with asyncio.Runner() as runner:
        runner.run(forget())
    assert sessions() == 0


def test_close_from_another_loop_ends_the_session(pool: GuardedPool, sessions: Callable[[], int]) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.ping())
    asyncio.run(pool.close())
    assert sessions() == 0
    with pytest.raises(PoolClosedError):
        asyncio.run(pool.ping())
    loop.close()


async def test_a_pool_without_a_session_has_nothing_to_wait_for_before_a_freeze(pool: GuardedPool) -> None:
    async with asyncio.timeout(5.0):
        await pool._core.settle(60.0)


async def test_a_pool_outside_any_loop_can_be_looked_at(pool: GuardedPool) -> None:
    def look() -> Any:
        return repr(pool), pool.stats()["circuit"]

    assert await asyncio.to_thread(look) == ("<GuardedPool without a session>", "closed")


async def rows(pool: GuardedPool) -> AsyncGenerator[int, None]:
    async with pool.acquire() as connection, connection.transaction():
        async for row in connection.cursor("SELECT generate_series(1, 500)"):
            yield row[0]


async def transacted_rows(pool: GuardedPool) -> AsyncGenerator[int, None]:
    async with pool.transaction() as connection:
        async for row in connection.cursor("SELECT generate_series(1, 500)"):
            yield row[0]


async def last_words(pool: GuardedPool) -> AsyncGenerator[int, None]:
    try:
        yield 1
    finally:
        await pool.fetchval("SELECT 1")


@pytest.mark.parametrize(
    ("generator", "first"),
    [
        (rows, "pool"),
        (rows, "generator"),
        (transacted_rows, "pool"),
        (transacted_rows, "generator"),
        (last_words, "pool"),
    ],
)
def test_a_generator_that_is_left_to_the_end_of_the_loop_ends_in_order(
    pool: GuardedPool,
    sessions: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
    generator: Callable[[GuardedPool], AsyncGenerator[int, None]],
    first: str,
) -> None:
    async def leave() -> None:
        if first == "pool":
            await pool.ping()
        left.append(generator(pool))
        assert await anext(left[0]) == 1

    left: list[AsyncGenerator[int, None]] = []
    asyncio.run(leave())
    assert sessions() == 0
    assert caplog.records == []

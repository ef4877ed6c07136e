"""What a release sends most of the time: one query, without a task, and without a timer of its own."""

from __future__ import annotations

import asyncio
import gc
import select
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard.pool import health, workers
from tests.support.bound import at_rest
from tests.support.eventually import eventually
from tests.support.program import run
from tests.support.speaker import Platform
from tests.support.tearing import Alarm, serves
from tests.support.witness import Witness, ahead

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

PID = "SELECT pg_backend_pid()"


async def settle(pool: Witness, sessions: int = 1) -> None:
    """Let the next release of each session send the usual reset: the session has its names, and no statement is new."""
    pool.heard.clear()
    for _ in range(3):
        acquisitions = [pool.acquire() for _ in range(sessions)]
        for acquisition in acquisitions:
            await acquisition.__aenter__()
        for acquisition in acquisitions:
            await acquisition.__aexit__(None, None, None)
        await at_rest(pool)
    if pool.endings():  # a busy machine can keep an answer for half a second
        await settle(pool, sessions)


async def test_it_has_no_task_and_no_timer_of_its_own(url: str) -> None:
    loop: Any = asyncio.get_running_loop()
    async with Witness(url) as pool:
        await settle(pool)
        tasks, timers = asyncio.all_tasks(), len(loop._scheduled)
        async with pool.acquire():
            pass
        assert pool.stats()["lent"] == 1, "the reset is under way"
        assert (asyncio.all_tasks(), len(loop._scheduled)) == (tasks, timers)
        await at_rest(pool)
        assert pool.endings() == []


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_path_that_dies_before_it(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch, waiting: bool
) -> None:
    monkeypatch.setattr(workers, "RESET_TIMEOUT", 0.05)
    async with Witness(url_via_tcp_proxy) as pool:
        await settle(pool)
        proxy.silence_all()
        began = time.monotonic()
        async with pool.acquire():
            pass
        if waiting:
            await pool.ping()
        else:
            await at_rest(pool)
        assert pool.endings() == [("replaced" if waiting else "closed", "unresponsive")]
        assert time.monotonic() - began < 0.4, "nobody waits for an answer to a goodbye"
        assert proxy.cancel_requests == 0


async def test_each_of_several_has_its_own_time(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RESET_TIMEOUT", 0.3)
    async with Witness(url_via_tcp_proxy, pool_max=2) as pool:
        await settle(pool, 2)
        proxy.silence_all()
        async with pool.acquire():
            async with pool.acquire():
                pass
            await asyncio.sleep(0.15)
        await eventually(lambda: len(pool.endings()) == 1, every=0.001)
        assert pool.stats()["lent"] == 1
        await at_rest(pool)
        assert pool.endings() == [("closed", "unresponsive")] * 2


async def test_a_loop_that_was_blocked_keeps_the_session(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer lay in the socket in time."""
    monkeypatch.setattr(workers, "RESET_TIMEOUT", 0.05)
    async with Witness(url) as pool:
        await settle(pool)
        async with pool.acquire():
            pass
        time.sleep(0.2)  # noqa: ASYNC251
        await at_rest(pool)
        assert pool.endings() == []


@pytest.mark.slow
def test_a_loop_that_runs_timers_before_it_reads_keeps_the_session(url: str) -> None:
    program = f"""
        import asyncio, time, uvloop
        from asyncdb_guard import GuardedPool

        async def main():
            async with GuardedPool() as pool:
                mine = await pool.fetchval("{PID}")
                for _ in range(5):
                    async with pool.acquire():
                        pass
                    await asyncio.sleep(0.05)
                async with pool.acquire():
                    pass
                time.sleep(0.7)
                assert await pool.fetchval("{PID}") == mine
            print("kept")

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "kept\n"


@pytest.mark.parametrize("answered", [True, False])
async def test_a_process_that_was_frozen_during_it(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    async with Witness(url_via_tcp_proxy) as pool:
        await settle(pool)
        (session,) = pool._core.loop_pool.connections.idle
        if not answered:
            proxy.silence_all()
        async with pool.acquire():
            pass
        while answered and not session.readable():
            time.sleep(0.001)  # noqa: ASYNC251
        ahead(monkeypatch, 10)
        began = time.monotonic()
        await pool.ping()
        assert pool.endings() == ([] if answered else [("replaced", "unresponsive")])
        assert time.monotonic() - began < 0.4, "the time was up before the thaw"


@pytest.mark.parametrize("answered", [True, False])
async def test_a_late_answer_of_which_a_part_may_have_come(
    proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """Without poll(2) each socket looks as if there were something to read. It gets a second time, and not a third."""
    monkeypatch.delattr(select, "poll")
    monkeypatch.setattr(workers, "RESET_TIMEOUT", 0.03)
    monkeypatch.setattr(health, "RESET_TIMEOUT", 0.5 if answered else 0.03)
    async with Witness(url_via_tcp_proxy) as pool:
        await settle(pool)
        proxy.latency = 0.03 if answered else 0.0
        async with pool.acquire():
            if not answered:
                proxy.silence_all()
        began = time.monotonic()
        await at_rest(pool)
        assert pool.endings() == ([] if answered else [("closed", "unresponsive")])
        assert time.monotonic() - began < 0.4
        assert proxy.cancel_requests == 0


async def test_a_session_that_dies_during_it(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    async with Witness(url_via_tcp_proxy) as pool:
        await settle(pool)
        proxy.deaf = True
        async with pool.acquire():
            pass
        proxy.reset_all()
        proxy.deaf = False
        await at_rest(pool)
        assert pool.endings() == [("closed", "lost")]


@pytest.mark.parametrize("known", [True, False])
async def test_a_stray_task_that_is_in_its_way(url: str, known: bool) -> None:
    async with Witness(url) as pool:
        await pool.fetchval("SELECT pg_sleep(0.02)")
        await settle(pool)
        async with pool.acquire() as connection:
            if known:  # a statement that is prepared again would call for more than the usual reset
                statement = await connection.prepare_cached("SELECT pg_sleep(0.02)")
                stray: asyncio.Task[Any] = asyncio.create_task(statement.fetch())
            else:
                stray = asyncio.create_task(connection.prepare("SELECT 'not yet known'"))
            await asyncio.sleep(0)
        await at_rest(pool)
        assert pool.endings() == [("closed", "unclean")]
        await asyncio.wait([stray])
        stray.exception()


@pytest.mark.parametrize(
    ("sqlstate", "part", "kept"),
    [
        ("26000", "EXECUTE", True),  # a borrower ran DEALLOCATE ALL, say
        ("42501", "DISCARD SEQUENCES", True),
        ("53200", "RESET ALL", False),
    ],
)
async def test_an_answer_that_is_an_error(sqlstate: str, part: str, kept: bool) -> None:
    settled = False
    platform = Platform(lambda sql: sqlstate if settled and part in sql else None)
    async with platform.serve() as url, Witness(url) as pool:
        await settle(pool)
        settled = True
        async with pool.acquire():
            pass
        await at_rest(pool)
        assert pool.endings() == ([] if kept else [("closed", "unclean")])
        settled = sqlstate == "42501"
        await settle(pool)  # no later one is lost
        assert platform.asked[-1] == platform.asked[-2]
        assert ("DISCARD SEQUENCES" in platform.asked[-1]) is (sqlstate != "42501")


@pytest.mark.parametrize("sql", ["DEALLOCATE ALL", "DISCARD ALL"])
async def test_a_borrower_that_drops_the_statements_that_the_driver_caches(url: str, sql: str) -> None:
    async with Witness(url) as pool:
        mine = await pool.fetchval(PID)
        await settle(pool)
        await pool.execute(sql)
        await settle(pool)
        assert await pool.fetchval(PID) == mine
        await at_rest(pool)
        assert pool.endings() == []


@pytest.mark.parametrize("end", ["close", "disconnect", "terminate"])
async def test_an_end_during_it(
    proxy: TcpProxy, url_via_tcp_proxy: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Witness(url_via_tcp_proxy) as pool:
        await settle(pool)
        proxy.silence_all()
        async with pool.acquire():
            pass
        if end == "terminate":
            pool.terminate()
        elif end == "close":
            await pool.close(timeout=0.1)
        else:
            await pool.disconnect(timeout=0.1)
            await at_rest(pool)
        assert (len(pool.endings()), pool.stats()["lent"]) == (1, 0)
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("closed_first", [True, False])
def test_a_loop_that_is_left_during_it(
    proxy: TcpProxy, url_via_tcp_proxy: str, caplog: pytest.LogCaptureFixture, closed_first: bool
) -> None:
    pool = Witness(url_via_tcp_proxy)

    async def release() -> None:
        async with pool.acquire():
            pass

    loop = asyncio.new_event_loop()
    loop.run_until_complete(settle(pool))
    proxy.deaf = True
    loop.run_until_complete(release())
    proxy.deaf = False
    if closed_first:
        loop.close()  # without the care that asyncio.run takes
    asyncio.run(pool.ping())
    loop.close()
    del loop
    gc.collect()
    assert caplog.records == []
    assert pool.stats()["connects"] == 2


def test_a_fork_during_it_spares_the_parents_session(url: str) -> None:
    program = f"""
        import asyncio, gc, os
        from asyncdb_guard import GuardedPool

        pool = GuardedPool()

        async def settle():
            for _ in range(5):
                async with pool.acquire():
                    pass
                await asyncio.sleep(0.05)
            mine = await pool.fetchval("{PID}")
            await asyncio.sleep(0.05)
            return mine

        async def release():
            async with pool.acquire():
                pass

        with asyncio.Runner() as runner:
            runner.run(settle())
            mine = runner.run(settle())
            runner.run(release())
            child = os.fork()
            if child == 0:
                assert asyncio.run(pool.fetchval("{PID}")) != mine
                gc.collect()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert runner.run(pool.fetchval("{PID}")) == mine
            runner.run(pool.close())
        print("spared")
    """
    assert run(program, LAMBDA_DATABASE_URL=url) == "spared\n"


@pytest.mark.parametrize(
    "step", ["send_reset", "_needs_more", "_reset_answered", "_hand_on", "rest", "_time_out_resets", "_end_late_resets"]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_exception_out_of_nowhere_in_any_step_of_it(
    proxy: TcpProxy, url_via_tcp_proxy: str, observer: Observer, role: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer stands in for the signal: it raises in the step's first line, once. The place comes back."""
    monkeypatch.setattr(workers, "RESET_TIMEOUT", 0.1)
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context.get("exception")))

    def trace(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == step and "asyncdb_guard" in frame.f_code.co_filename:
            sys.setprofile(None)
            raise Alarm

    async with Witness(url_via_tcp_proxy, connect_timeout_ms=700, breaker_fail_max=1000) as pool:
        await settle(pool)
        dies = step in {"_time_out_resets", "_end_late_resets"}
        if dies:
            proxy.silence_all()
        sys.setprofile(trace)
        try:
            async with pool.acquire():
                pass
        except Alarm as alarm:
            told.append(alarm)
        try:
            await eventually(lambda: told)
        finally:
            sys.setprofile(None)
        assert [type(error) for error in told] == [Alarm]
        await eventually(lambda: serves(pool))
        await at_rest(pool)
        assert await observer.count(user=role) == 1 + dies  # the server cannot know of a path that is silently dead
        if dies:  # nobody asks this time: the timer works again
            await settle(pool)
            async with pool.acquire():
                proxy.silence_all()
            await at_rest(pool)
    gc.collect()

"""Every place has an owner at every moment: whatever arrives wherever, it costs one borrower, and never the place."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest
from tests.support.eventually import eventually


# what tears asyncpg and asyncio in the middle leaves warnings of theirs
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("session_reset", ["always", "never"])
@pytest.mark.parametrize("block", ["nothing", "statement", "error"])
async def test_a_borrower_near_the_limit_of_the_stack(url: str, block: str, session_reset: Any) -> None:
    async def deep(more: int) -> None:
        if more:
            await deep(more - 1)
            return
        async with pool.acquire() as connection:
            if block == "statement":
                await connection.fetchval("SELECT 1")
            elif block == "error":
                raise KeyError

    depth = 0
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        depth += 1
    outcomes = set()
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset, breaker_fail_max=1000)) as pool:
        await pool.ping()
        for room in range(8, 60, 2):
            try:
                await deep(sys.getrecursionlimit() - depth - room)
            except (RecursionError, KeyError) as error:
                outcomes.add(type(error))
            assert await pool.fetchval("SELECT 1") == 1
    assert RecursionError in outcomes


def odd_sqlstate() -> Exception:
    class Odd(asyncpg.PostgresError):
        sqlstate = 12345

    return Odd("x")


def sqlstate_that_raises() -> Exception:
    class Odd(asyncpg.PostgresError):
        @property
        def sqlstate(self) -> str:
            raise ValueError

    return Odd("x")


def cause_that_raises() -> Exception:
    class Odd(Exception):
        @property
        def __cause__(self) -> BaseException:  # type: ignore[override]
            raise ValueError

    return Odd()


def deep_groups() -> Exception:
    error = ExceptionGroup("group", [KeyError()])
    for _ in range(300):
        error = ExceptionGroup("group", [error])
    return error


@pytest.mark.parametrize("make", [odd_sqlstate, sqlstate_that_raises, cause_that_raises, deep_groups])
async def test_an_error_that_raises_when_it_is_looked_at(url: str, make: Callable[[], Exception]) -> None:
    async with GuardedPool(DatabaseSettings(url=url, breaker_fail_max=1000)) as pool:
        for _ in range(3):
            with contextlib.suppress(Exception):  # whatever comes of it
                async with pool.acquire():
                    raise make()
            assert await pool.fetchval("SELECT 1") == 1


async def test_a_borrow_that_is_forgotten_gives_its_place_back(url: str, observer: Observer, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        acquisition = pool.acquire()
        await acquisition.__aenter__()
        del acquisition
        gc.collect()
        assert await pool.fetchval("SELECT 1") == 1
        await at_rest(pool)
        assert await observer.count(user=role) == 1


@pytest.mark.parametrize("steps", [1, 2])
async def test_a_coroutine_that_is_closed_in_its_block(proxy: TcpProxy, url_via_tcp_proxy: str, steps: int) -> None:
    proxy.latency = 0.01
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy)) as pool:
        await pool.ping()
        await at_rest(pool)
        borrower = pool.fetchval("SELECT $1::int", 1)
        for _ in range(steps):
            future = borrower.send(None)
            await eventually(future.done, every=0.001)
            future._asyncio_future_blocking = False
        borrower.close()
        assert await pool.fetchval("SELECT 1") == 1


class Alarm(Exception):
    """As a signal handler raises it, at any bytecode."""


@pytest.mark.parametrize("step", ["take_back", "put_to_work", "rest", "is_closed", "lend"])
async def test_an_exception_out_of_nowhere_in_any_step_of_a_borrow(
    url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer stands in for the signal: it raises in the step's first line, once."""

    def trace(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == step and "asyncdb_guard" in frame.f_code.co_filename:
            sys.setprofile(None)
            raise Alarm

    settings = DatabaseSettings(url=url, session_reset="never" if step == "rest" else "always", connect_timeout_ms=700)
    async with GuardedPool(settings) as pool:
        await pool.ping()
        await at_rest(pool)
        sys.setprofile(trace)
        try:
            await pool.fetchval("SELECT 1")
        except Alarm:
            pass
        finally:
            sys.setprofile(None)

        async def served() -> bool:
            try:
                return await pool.fetchval("SELECT 1") == 1
            except Exception:
                return False

        await eventually(served)
        assert await pool.fetchval("SELECT 1") == 1

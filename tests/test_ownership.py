"""Every place has an owner at every moment: whatever arrives wherever, it costs one borrower, and never the place."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool, GuardError
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest
from tests.support.eventually import eventually

# what tears asyncpg and asyncio in the middle leaves warnings of theirs
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def serves(pool: GuardedPool) -> bool:
    """Whether the pool serves the next caller; where the stack tore more than a lease, it finds that at a timeout."""
    with contextlib.suppress(GuardError):
        return await pool.fetchval("SELECT 1") == 1
    return False


DEEP = """
import asyncio, contextlib, logging, sys
from asyncdb_guard import DatabaseSettings, GuardedPool, GuardError
logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it is torn as well, and says so
sys.unraisablehook = lambda unraisable: None
url, session_reset, block = sys.argv[1:]
settings = DatabaseSettings(
    url=url, session_reset=session_reset, breaker_fail_max=1000, connect_timeout_ms=700
)
async def main():
    torn = 0
    async with GuardedPool(settings) as pool:
        async def deep(more):
            if more:
                return await deep(more - 1)
            async with pool.acquire():
                if block == "error":
                    raise KeyError
        async def serves():
            for _ in range(10):
                with contextlib.suppress(GuardError):
                    return await pool.fetchval("SELECT 1") == 1
        await pool.ping()
        for room in range(8, 60, 2):
            try:
                await deep(sys.getrecursionlimit() - room)
            except RecursionError:
                torn += 1
            except KeyError:
                pass
            assert await serves(), room
    print("torn" if torn else "never torn")
asyncio.run(main())
"""


@pytest.mark.parametrize("session_reset", ["always", "never"])
@pytest.mark.parametrize("block", ["nothing", "error"])
@pytest.mark.slow
def test_a_borrower_near_the_limit_of_the_stack(url: str, block: str, session_reset: str) -> None:
    """In a process of its own: at that limit even pytest's hooks fail."""
    done = subprocess.run(
        [sys.executable, "-c", DEEP, url, session_reset, block], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "torn\n"), done.stderr


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


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_a_connection_that_the_driver_takes_for_busy_is_not_lent_again(url: str, session_reset: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url, session_reset=session_reset)) as pool:
        async with pool.acquire() as connection:
            # as an exception of a signal handler between two of the driver's steps leaves it
            connection._con._stmt_exclusive_section._acquired = True
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["connects"] == 2


class Alarm(Exception):
    """As a signal handler raises it, at any bytecode."""


@pytest.mark.parametrize(("caller", "step"), [("wait", "now"), ("wait", "readmit"), ("__aenter__", "elapsed")])
async def test_an_exception_out_of_nowhere_that_somebody_keeps_keeps_no_connection(
    url: str, caller: str, step: str
) -> None:
    """Its traceback has the frames that the connection was in."""

    def trace(frame: Any, event: str, argument: object) -> None:
        names = frame.f_code.co_name, frame.f_back.f_code.co_name if frame.f_back else None
        if event == "call" and names == (step, caller) and frame.f_back.f_locals.get("lease") is not None:
            sys.setprofile(None)
            raise Alarm

    async with GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=700)) as pool:
        sys.setprofile(trace)
        try:
            with pytest.raises(Alarm) as kept:
                await pool.fetchval("SELECT 1")
        finally:
            sys.setprofile(None)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats()["connects"] == 1
        assert kept.value.__traceback__ is not None


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

        await eventually(lambda: serves(pool))
        assert await pool.fetchval("SELECT 1") == 1

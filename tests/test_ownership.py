"""Every place has an owner at every moment: whatever arrives wherever, it costs one borrower, and never the place."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool, GuardError
from asyncdb_guard.settings.target import ConnectTarget
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support.bound import at_rest
from tests.support.eventually import eventually
from tests.support.tearing import Alarm, serves

# what tears asyncpg and asyncio in the middle leaves warnings of theirs
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def no_garbage() -> Iterator[None]:
    """What was torn is collected here: elsewhere its warnings and log lines would be another test's failure."""
    yield
    gc.collect()


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


async def test_a_borrow_that_is_forgotten_just_before_the_end(
    url: str, observer: Observer, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = GuardedPool(DatabaseSettings(url=url))
    connection = await pool.acquire()
    await asyncio.sleep(0)  # in this round of the loop, the future that brought it still has it
    del connection
    pool.terminate()
    await asyncio.sleep(0)  # its end is told in the loop's next round
    await eventually(lambda: _is_gone(observer, role))
    assert caplog.records == []


async def _is_gone(observer: Observer, role: str) -> bool:
    return await observer.count(user=role) == 0


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


FEW_MS: dict[str, Any] = {
    "connect_timeout_ms": 100, "breaker_fail_max": 1000, "breaker_reset_timeout_ms": 20,
    "breaker_reset_timeout_max_ms": 20,
}  # fmt: skip


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


@pytest.mark.parametrize("step", ["take_back", "put_to_work", "rest", "is_closed", "lend", "Lease.__init__"])
async def test_an_exception_out_of_nowhere_in_any_step_of_a_borrow(
    url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer stands in for the signal: it raises in the step's first line, once."""

    def trace(frame: Any, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and step in {code.co_name, code.co_qualname} and "asyncdb_guard" in code.co_filename:
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


async def test_an_exception_out_of_nowhere_as_a_worker_begins(url: str) -> None:
    def trace(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "call_soon" and frame.f_back.f_code.co_name == "_start":
            sys.setprofile(None)
            raise Alarm

    async with GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=700)) as pool:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sys.setprofile(trace)
            try:
                with pytest.raises(Alarm):
                    await pool.ping()
            finally:
                sys.setprofile(None)
            gc.collect()
        assert [str(warning.message) for warning in told if "never awaited" in str(warning.message)] == []
        assert await serves(pool)


async def test_an_exception_out_of_nowhere_costs_no_waiter_its_timeout(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    def trace(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "_time_out":
            sys.setprofile(None)
            raise Alarm

    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, **FEW_MS)) as pool:
        proxy.hang = True
        waiting = asyncio.gather(*(pool.ping() for _ in range(3)), return_exceptions=True)
        sys.setprofile(trace)
        try:
            failures = await asyncio.wait_for(waiting, 5)
        finally:
            sys.setprofile(None)
    assert all(isinstance(failure, GuardError) for failure in failures)
    assert [type(error) for error in told] == [Alarm]


def lose_wake_up(coroutine: str) -> bool:
    """Have a task lose its wake-up, as an exception of a signal handler between two callbacks of the loop does."""
    for task in asyncio.all_tasks():
        bare: Any = task
        if bare.get_coro().__name__ == coroutine and bare._fut_waiter is not None:
            for callback, _ in bare._fut_waiter._callbacks:
                if getattr(callback, "__self__", None) is task:
                    return bool(bare._fut_waiter.remove_done_callback(callback))
    return False


@pytest.fixture
async def ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`ahead(60)` puts the event loop's clock ahead by so many seconds, as a frozen process finds it."""
    loop = asyncio.get_running_loop()

    def ahead(seconds: float) -> None:
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + seconds)

    return ahead


@pytest.mark.parametrize("step", ["_connect_it", "_without_variables", "_reset_it", "_close_it"])
@pytest.mark.parametrize("end", ["use", "close", "terminate"])
async def test_a_worker_that_has_lost_its_wake_up(
    proxy: TcpProxy, url_via_tcp_proxy: str, ahead: Callable[[float], None], step: str, end: str
) -> None:
    """It keeps neither the place nor the end of its event loop: afterwards no task is left."""
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, **FEW_MS)) as pool:
        if step in {"_connect_it", "_without_variables"}:
            proxy.hang = True
            borrower = asyncio.create_task(pool.ping())
        else:
            await eventually(lambda: serves(pool))  # a busy machine takes longer for a connect, now and then
            await at_rest(pool)
            async with pool.acquire() as connection:
                if step == "_close_it":
                    await connection.set_builtin_type_codec("text", codec_name="pg_contrib.hstore", schema="pg_catalog")
                proxy.deaf = True
            borrower = asyncio.create_task(asyncio.sleep(0))
        await eventually(lambda: lose_wake_up(step), every=0)
        proxy.hang = proxy.deaf = False
        if end == "terminate":
            pool.terminate()
        if end != "use":
            await pool.close(timeout=0.1)
        await asyncio.gather(borrower, return_exceptions=True)
        if end == "use":
            ahead(60)
            await eventually(lambda: serves(pool))


async def test_a_worker_whose_timeout_is_lost(
    proxy: TcpProxy, url_via_tcp_proxy: str, ahead: Callable[[float], None]
) -> None:
    """Nothing else would end a reset on a dead path."""
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, **FEW_MS)) as pool:
        await eventually(lambda: serves(pool))
        await at_rest(pool)
        async with pool.acquire():
            proxy.silence_all()
        await asyncio.sleep(0)
        loop: Any = asyncio.get_running_loop()
        timers = [timer for timer in loop._scheduled if "_on_timeout" in repr(timer)]
        assert timers
        for timer in timers:
            timer.cancel()
        ahead(60)
        await eventually(lambda: serves(pool))


async def test_a_worker_that_is_overdue_as_the_process_was_frozen_stays_the_owner(
    proxy: TcpProxy, url_via_tcp_proxy: str, ahead: Callable[[float], None]
) -> None:
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, **FEW_MS)) as pool:
        proxy.hang = True
        borrower = asyncio.create_task(pool.ping())
        await eventually(lambda: proxy.accepted == 1)
        ahead(60)
        with pytest.raises(GuardError):
            await borrower
        proxy.hang = False
        await eventually(lambda: serves(pool))  # past the open period
        assert proxy.accepted == 2


async def test_credentials_that_suppress_their_cancellation(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    """A login that outlives its time keeps the place for so long, and no session that it gets afterwards."""
    released = asyncio.Event()

    class Provider:
        async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()
            return target

    settings = DatabaseSettings(url=url_via_tcp_proxy, **FEW_MS)
    async with GuardedPool(settings, credentials=Provider()) as pool:
        with pytest.raises(GuardError):
            await pool.ping()
        with pytest.raises(GuardError):
            await pool.ping()
        assert len(asyncio.all_tasks()) < 4  # the place was taken, and no second login begun
    released.set()
    await eventually(lambda: proxy.accepted == 1 and not proxy.open_server_connections)


async def test_credentials_that_come_when_nobody_waits_any_more(proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    """The login that follows is over before its place is free, and ends with a goodbye."""

    class Provider:
        async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return target

    settings = DatabaseSettings(url=url_via_tcp_proxy, **(FEW_MS | {"connect_timeout_ms": 300}))
    async with GuardedPool(settings, credentials=Provider()) as pool:
        with pytest.raises(GuardError):
            await pool.ping()
        await eventually(lambda: proxy.accepted == 1 and not proxy.open_connections)
        assert proxy.client_messages[-1] == b"X"

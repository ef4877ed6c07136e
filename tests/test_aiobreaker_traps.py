"""What aiobreaker 1.2 does on its own, and that none of it reaches our users.

A test named `aiobreaker_…` watches upstream: when it fails, that trap is gone, and its disarming may go, too.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from aiobreaker import CircuitBreaker as Circuit
from aiobreaker import CircuitBreakerError

from asyncdb_guard import CircuitOpenError, ConnectFailedError, DatabaseSettings, GuardedPool, StatementTimeoutError
from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.failures import FailureKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

# utcnow() is a trap of its own: the others are looked at without its warning.
quiet = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
GONE = "aiobreaker has changed: this trap is gone, see whether its disarming in asyncdb_guard can go, too."
START = (1000.0, 1_700_000_000.0)
EASTMOST, WESTMOST = "<+14>-14", "<-12>+12"  # POSIX: the sign is that of UTC minus local time


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Where nobody listens, and nobody can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"postgresql://user@127.0.0.1:{held.getsockname()[1]}/db"


def settings(url: str, **knobs) -> DatabaseSettings:
    return DatabaseSettings(url=url, **{"breaker_fail_max": 3, "session_reset": "never"} | knobs)


def python(code: str, *options: str, zone: str = "UTC") -> None:
    """Run code in a process of its own, in that time zone; it must say `done`, and nothing else."""
    zoned = f"import os, time\nos.environ['TZ'] = {zone!r}\ntime.tzset()\n" + textwrap.dedent(code) + "\nprint('done')"
    ran = subprocess.run([sys.executable, *options, "-c", zoned], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", ""), ran.stderr


async def fails() -> None:
    raise ConnectionError("The database is down.")


async def violates() -> None:
    raise asyncpg.UniqueViolationError("A business rule.")


async def call(circuit: Circuit, function: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is
        await circuit.call_async(function)


# 1. asyncpg's error classes have a metaclass, so `exclude` takes them for predicates.


@quiet
async def test_aiobreaker_calls_an_excluded_asyncpg_error_and_never_opens():
    circuit = Circuit(fail_max=1, exclude=[asyncpg.UniqueViolationError])
    await call(circuit, fails)
    assert circuit.current_state.name == "CLOSED", GONE


async def test_a_unique_violation_excuses_nothing_else(url, dead_url):
    async with GuardedPool(settings(url, breaker_fail_max=1)) as pool:
        with pytest.raises(asyncpg.UniqueViolationError):
            await pool.execute("CREATE TEMP TABLE t (a int UNIQUE); INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)")
        assert pool.stats()["circuit"] == "closed"
    async with GuardedPool(settings(dead_url, breaker_fail_max=1)) as pool:
        with pytest.raises(ConnectFailedError):
            await pool.fetchval("SELECT 1")
        assert pool.stats()["circuit"] == "open"


# 2. A half-open circuit lets everybody through.


@quiet
async def test_aiobreaker_lets_all_of_fifty_through_a_half_open_circuit():
    circuit = Circuit(fail_max=1, timeout_duration=timedelta(microseconds=1))
    await call(circuit, fails)
    through = 0
    end = asyncio.Event()

    async def trial() -> None:
        nonlocal through
        through += 1
        await end.wait()

    callers = [asyncio.create_task(circuit.call_async(trial)) for _ in range(50)]
    await asyncio.sleep(0)
    end.set()
    await asyncio.gather(*callers)
    assert through == 50, GONE


async def test_one_of_fifty_is_let_through_our_half_open_circuit(proxy, url_via_tcp_proxy, eventually, later):
    knobs = {"breaker_fail_max": 1, "breaker_reset_timeout_ms": 500, "breaker_reset_timeout_max_ms": 500}
    async with GuardedPool(settings(url_via_tcp_proxy, pool_max=5, connect_timeout_ms=5000, **knobs)) as pool:
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            async with pool.acquire():
                raise asyncpg.ConnectionDoesNotExistError("This opens the circuit.")
        await eventually(lambda: pool.stats()["idle"] == 1)
        later(1.0)
        proxy.deaf = True
        callers = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(50)]
        await eventually(lambda: sum(caller.done() for caller in callers) == 49)
        trial = next(caller for caller in callers if not caller.done())
        assert {type(caller.exception()) for caller in callers if caller is not trial} == {CircuitOpenError}
        assert pool.stats()["lent"] == 1
        trial.cancel()
        await asyncio.wait([trial])
        await pool.close(timeout=0.05)


# 3. An excluded error counts as a success.


@quiet
async def test_aiobreaker_counts_an_excluded_error_as_a_success():
    circuit = Circuit(fail_max=3, exclude=[lambda error: isinstance(error, KeyError)])

    async def neutral() -> None:
        raise KeyError("not the database's")

    await call(circuit, fails)
    await call(circuit, neutral)
    assert circuit.fail_counter == 0, GONE


async def test_a_neutral_error_is_no_success(url):
    async with GuardedPool(settings(url, command_timeout_ms=50)) as pool:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await pool.execute("SELECT pg_sleep(5)")
            with pytest.raises(KeyError):
                async with pool.acquire():
                    raise KeyError("not the database's")
        assert pool._core.breaker.failures == 2
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(5)")
        assert pool.stats()["circuit"] == "open"


# 4. The call that trips the circuit raises the breaker's error in place of its own.


@quiet
async def test_aiobreaker_replaces_the_error_of_the_call_that_trips():
    circuit = Circuit(fail_max=1)
    with pytest.raises(CircuitBreakerError) as caught:
        await circuit.call_async(fails)
    assert isinstance(caught.value.__cause__, ConnectionError), GONE


async def test_the_call_that_trips_our_circuit_raises_its_own_error(url, dead_url):
    async with GuardedPool(settings(dead_url)) as pool:
        for _ in range(3):
            with pytest.raises(ConnectFailedError) as caught:
                await pool.ping()
            assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(CircuitOpenError):
            await pool.ping()
    async with GuardedPool(settings(url, breaker_fail_max=1, command_timeout_ms=50)) as pool:
        with pytest.raises(StatementTimeoutError):
            await pool.execute("SELECT pg_sleep(5)")
        assert pool.stats()["circuit"] == "open"


# 5. `opens_at` compares a local time with one in UTC.

OPENS_AT = """
    import warnings
    from datetime import datetime, timedelta
    warnings.simplefilter("ignore", DeprecationWarning)
    from aiobreaker import CircuitBreaker
    circuit = CircuitBreaker(timeout_duration=timedelta(seconds=60))
    circuit.open()
    opens_at = circuit.opens_at
    {check}
"""

OUR_RETRY_AFTER = """
    from asyncdb_guard.breaker import CircuitBreaker
    from asyncdb_guard.clock import now
    from asyncdb_guard.failures import FailureKind
    from asyncdb_guard.errors import CircuitOpenError
    breaker = CircuitBreaker(fail_max=1, reset_timeout=60.0, reset_timeout_max=60.0, trial_lease=5.0, emit=repr)
    breaker.failed(breaker.admit(now()), now(), FailureKind.ANSWERED, alone=False)
    try:
        breaker.admit(now())
    except CircuitOpenError as error:
        assert 29.0 < error.retry_after <= 60.0, error.retry_after
    monotonic, wall = now()
    breaker.admit((monotonic + 60.0, wall + 60.0))
    assert breaker.state == "half_open", breaker.state
"""


def test_aiobreaker_knows_no_opening_time_east_of_greenwich():
    python(OPENS_AT.format(check=f"assert opens_at is None, {GONE!r}"), zone=EASTMOST)


def test_aiobreaker_is_wrong_by_the_offset_west_of_greenwich():
    wrong = "assert timedelta(hours=11) < opens_at - datetime.now() < timedelta(hours=13)"
    python(OPENS_AT.format(check=f"{wrong}, {GONE!r}"), zone=WESTMOST)


@pytest.mark.parametrize("zone", [EASTMOST, "UTC", WESTMOST])
@pytest.mark.slow
def test_our_retry_after_is_right_in_every_time_zone(zone):
    python(OUR_RETRY_AFTER, "-W", "error", zone=zone)


# 6. `utcnow()` warns since Python 3.12, and a warning that is an error replaces the breaker's.

TRIP = """
    import asyncio
    from aiobreaker import CircuitBreaker, CircuitBreakerError
    async def fails():
        raise ConnectionError
    try:
        asyncio.run(CircuitBreaker(fail_max=1).call_async(fails))
    except Exception as error:
        assert type(error) is {expected}, f"{{error!r}}: {gone}"
"""


def test_aiobreaker_trips_over_its_own_deprecation_warning():
    expected = "DeprecationWarning" if sys.version_info >= (3, 12) else "CircuitBreakerError"
    python(TRIP.format(expected=expected, gone=GONE), "-W", "error")


@pytest.mark.slow
def test_the_whole_life_of_our_circuit_passes_under_warnings_as_errors(dead_url):
    """With the package and asyncpg imported, a pool used, the circuit opened and tried again."""
    python(
        f"""
        import asyncio
        from asyncdb_guard import CircuitOpenError, ConnectFailedError, DatabaseSettings, GuardedPool
        heard = []
        settings = DatabaseSettings(
            url={dead_url!r}, breaker_fail_max=1,
            breaker_reset_timeout_ms=1000, breaker_reset_timeout_max_ms=1000,
        )
        async def main():
            pool = GuardedPool(settings, on_event=heard.append)
            for expected in (ConnectFailedError, CircuitOpenError):
                try:
                    await pool.ping()
                except Exception as error:
                    assert type(error) is expected, repr(error)
            breaker = pool._core.breaker
            later = (breaker._opened_at[0] + 1.0, breaker._opened_at[1] + 1.0)
            breaker.succeeded(breaker.admit(later))
            await pool.close()
        asyncio.run(main())
        names = [event.name for event in heard]
        assert names == ["circuit_opened", "circuit_rejected", "circuit_half_opened", "circuit_closed"], names
        """,
        "-W",
        "error",
    )


# 7. A timeout of zero becomes a minute.


def test_aiobreaker_takes_a_timeout_of_zero_for_none_and_waits_a_minute():
    assert Circuit(timeout_duration=timedelta(0)).timeout_duration == timedelta(seconds=60), GONE


@pytest.mark.parametrize("period", [0.0, 1e-9, 0.001])
def test_our_shortest_period_is_as_short_as_it_was_set(period):
    """A nanosecond, too, is a timedelta of zero."""
    breaker = CircuitBreaker(
        fail_max=1, reset_timeout=period, reset_timeout_max=period, trial_lease=5.0, emit=lambda event: None
    )
    breaker.failed(breaker.admit(START), START, FailureKind.ANSWERED, alone=False)
    breaker.admit((START[0] + 0.001, START[1] + 0.001))
    assert breaker.state == "half_open"


# What is used of aiobreaker: its states, its storage and its listeners.


def test_aiobreaker_holds_the_state_of_our_circuit():
    breaker = CircuitBreaker(
        fail_max=1, reset_timeout=8.0, reset_timeout_max=8.0, trial_lease=5.0,
        emit=lambda event: None, draw=lambda low, high: high,
    )  # fmt: skip
    circuit = breaker._circuit
    assert circuit.state.state.name == "CLOSED"
    breaker.failed(breaker.admit(START), START, FailureKind.ANSWERED, alone=False)
    assert (circuit.state.state.name, circuit.fail_counter) == ("OPEN", 1)
    trial = breaker.admit((START[0] + 8.0, START[1]))
    assert circuit.state.state.name == "HALF_OPEN"
    breaker.succeeded(trial)
    assert (circuit.state.state.name, circuit.fail_counter) == ("CLOSED", 0)

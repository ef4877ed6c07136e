"""The pytest plugin of asyncdb_guard. In the wheel it is the module `asyncdb_guard_pytest`.

Every pytest run of whoever has installed the package imports it: it imports nothing until a fixture is asked for. All
fixtures are plain ones, which need no event loop, so they go with pytest-asyncio of any loop scope and with anyio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import ModuleType

    from asyncdb_guard.pool import GuardedPool
    from asyncdb_guard.settings import DatabaseSettings
    from asyncdb_guard.testing import LambdaRuntime, ManualClock, RolledBackPool
    from asyncdb_guard.testing.fixtures import BasePools


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("asyncdb_guard", "PostgreSQL for tests (asyncdb_guard)")
    group.addoption(
        "--postgres-url",
        metavar="URL",
        help="a server where databases may be created; by default ASYNCDB_GUARD_POSTGRES_URL, else a throw-away server",
    )
    group.addoption(
        "--postgres-version",
        metavar="MAJOR",
        type=int,
        help="the major version of the server, such as 16; by default the newest throw-away server there is",
    )


def _after_the_loop(request: pytest.FixtureRequest) -> None:
    """Set the test's event loop up first: then it is there still when the pool ends, which saves a connection."""
    for name in request.fixturenames:
        if name.endswith("_scoped_runner"):  # pytest-asyncio's, from 1.0 on; without it all works as well
            request.getfixturevalue(name)


@pytest.fixture(scope="session")
def postgres_schema() -> str:
    """The SQL statements that make the database's schema, run once for all processes. Override it; default: none."""
    return ""


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest, postgres_schema: str) -> Iterator[str]:
    """The URL of a database that only this process has, with `postgres_schema` in it; gone after the run."""
    from asyncdb_guard.testing import PostgresNotFoundError, PostgresUrlError
    from asyncdb_guard.testing.fixtures import database

    temporary = database(request.config, postgres_schema)
    url, problem = "", None
    try:
        url = temporary.__enter__()
    except (PostgresNotFoundError, PostgresUrlError) as error:
        problem = str(error)
    if problem is not None:  # outside of the except block: pytest would print the text twice
        pytest.fail(problem, pytrace=False)
    yield url
    temporary.__exit__(None, None, None)


@pytest.fixture
def guarded_settings(postgres_url: str) -> DatabaseSettings:
    """The settings of the pools below: `DatabaseSettings(url=postgres_url)`. Override it for others."""
    from asyncdb_guard.testing.fixtures import settings_for

    return settings_for(postgres_url)


@pytest.fixture
def guarded_pool(request: pytest.FixtureRequest, guarded_settings: DatabaseSettings) -> Iterator[GuardedPool]:
    """A `GuardedPool` for one test. What is written stays. A connection that was not returned is an error."""
    from asyncdb_guard.testing.fixtures import guarded

    _after_the_loop(request)
    with guarded(guarded_settings) as pool:
        yield pool


@pytest.fixture(scope="session")
def _guarded_base_pools() -> Iterator[BasePools]:
    from asyncdb_guard.testing.fixtures import BasePools

    with BasePools() as pools:
        yield pools


@pytest.fixture
def rolled_back_pool(
    request: pytest.FixtureRequest, guarded_settings: DatabaseSettings, _guarded_base_pools: BasePools
) -> Iterator[RolledBackPool]:
    """A pool with the same face for one test; what is written is undone. See `asyncdb_guard.testing.rolled_back`."""
    _after_the_loop(request)
    with _guarded_base_pools.rolled_back(guarded_settings) as pool:
        yield pool


@pytest.fixture
def open_circuit() -> Callable[[GuardedPool], AbstractContextManager[None]]:
    """`with open_circuit(pool):` the pool's breaker refuses everybody."""
    from asyncdb_guard.testing import open_circuit

    return open_circuit


@pytest.fixture
def database_down() -> Callable[[GuardedPool], AbstractContextManager[None]]:
    """`with database_down(pool):` the pool's sessions end, and nobody listens where it connects."""
    from asyncdb_guard.testing import database_down

    return database_down


@pytest.fixture
def lambda_runtime(guarded_settings: DatabaseSettings) -> Iterator[Callable[..., LambdaRuntime]]:
    """`lambda_runtime("app.handler", env=..., cwd=...)` starts a real Lambda runtime process on the test's database."""
    from asyncdb_guard.testing.fixtures import runtimes

    with runtimes(guarded_settings) as start:
        yield start


@pytest.fixture
def cognito_events() -> ModuleType:
    """What Cognito sends: `token_event(...)`, `machine_event(...)`, `confirmation_event(...)`, `cognito_user(...)`."""
    from asyncdb_guard.testing import cognito_events

    return cognito_events


@pytest.fixture
def manual_clock() -> Iterator[ManualClock]:
    """A clock for everything that depends on time: `manual_clock.advance(60)`."""
    from asyncdb_guard.testing import ManualClock

    with ManualClock() as clock:
        yield clock

"""What the fixtures of the pytest plugin do. Without a word of pytest's, so that `plugin` alone depends on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime
from asyncdb_guard.testing.loop_thread import run_blocking
from asyncdb_guard.testing.pools.errors import BorrowLeftOpenError
from asyncdb_guard.testing.pools.inside import loop_of
from asyncdb_guard.testing.pools.rolled_back import RolledBackPool, rolled_back
from asyncdb_guard.testing.pools.watched import WatchedPool
from asyncdb_guard.testing.postgres.databases import TemporaryDatabase

_OURS = ("LAMBDA_DATABASE_", "DATABASE_URL")
"""How the variables begin that DatabaseSettings reads."""

_settings: dict[tuple[str, tuple[tuple[str, str], ...]], DatabaseSettings] = {}

_LEFT_OPEN_TIMEOUT = 0.1
"""Seconds for a borrower who is late anyway."""


class Config(Protocol):
    """What is asked of pytest's configuration."""

    def getoption(self, name: str) -> Any:
        """The value of an option."""


@contextmanager
def database(config: Config, schema: str) -> Generator[str]:
    """The URL of this process's database: under xdist one for each worker, on one server."""
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    with TemporaryDatabase.start(
        schema,
        url=config.getoption("--postgres-url"),
        version=config.getoption("--postgres-version"),
        run=worker.get("testrunuid"),
        process=worker.get("workerid", "main"),
    ) as temporary:
        yield temporary.url


def settings_for(url: str) -> DatabaseSettings:
    """The settings for a URL and for the environment as it is now; to make them anew takes longer than many a test."""
    environment = tuple((name, value) for name, value in os.environ.items() if name.upper().startswith(_OURS))
    key = (url, environment)
    if key not in _settings:
        _settings[key] = DatabaseSettings(url=url)
    # A copy: what database_down() does to it concerns nobody else.
    return _settings[key].model_copy()


@contextmanager
def guarded(settings: DatabaseSettings) -> Generator[WatchedPool]:
    """A pool for one test, from outside of any event loop. Raises BorrowLeftOpenError in the end."""
    pool = WatchedPool(settings)
    yield pool
    _end(pool, loop_of(pool), pool.left_open)


class BasePools:
    """The pools behind the rolled-back ones: one at a time, kept while tests have the same settings."""

    def __init__(self) -> None:
        self._pool: GuardedPool | None = None

    @contextmanager
    def rolled_back(self, settings: DatabaseSettings) -> Generator[RolledBackPool]:
        """A rolled-back pool for one test, from outside of any event loop. Raises BorrowLeftOpenError in the end."""
        pool = rolled_back(self._base(settings))
        yield pool
        shared = pool.transaction_in_use
        _end(pool, shared.loop if shared is not None else None, pool.left_open)

    def _base(self, settings: DatabaseSettings) -> GuardedPool:
        if self._pool is None or self._pool.settings != settings:
            self.close()
            # A copy: database_down() on a pool of the test's own is not for this one.
            self._pool = GuardedPool(settings.model_copy())
        return self._pool

    def close(self) -> None:
        """End the last of them."""
        pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool, loop_of(pool), [])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def runtimes(settings: DatabaseSettings) -> Generator[Callable[..., LambdaRuntime]]:
    """Start Lambda runtimes that use the test's database; all end with the block."""
    with ExitStack() as stack:

        def start(handler: str, *, env: dict[str, str] | None = None, **options: Any) -> LambdaRuntime:
            database = {} if settings.url is None else {"LAMBDA_DATABASE_URL": settings.url.get_secret_value()}
            return stack.enter_context(LambdaRuntime.start(handler, env=database | (env or {}), **options))

        yield start


def _end(pool: GuardedPool, loop: asyncio.AbstractEventLoop | None, left_open: list[str]) -> None:
    """Close a pool from outside of its event loop, on that loop if it is still good for that."""
    closing = pool.close(_LEFT_OPEN_TIMEOUT if left_open else 1.0)
    if loop is None or loop.is_closed() or loop.is_running():
        run_blocking(closing)
    else:
        loop.run_until_complete(closing)
    if left_open:
        raise BorrowLeftOpenError(left_open)

"""Makes an engine whose connections are borrowed from a guarded pool."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_engine
from sqlalchemy.pool import NullPool

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.sqlalchemy.dialect import DRIVER, GuardedDialect, note_invalidation

registry.register(f"postgresql.{DRIVER}", GuardedDialect.__module__, GuardedDialect.__name__)

_NOT_HERE = {
    "pool_size": "set LAMBDA_DATABASE_POOL_MAX",
    "max_overflow": "LAMBDA_DATABASE_POOL_MAX is the one ceiling",
    "pool_timeout": "set LAMBDA_DATABASE_CONNECT_TIMEOUT_MS",
    "pool_recycle": "set LAMBDA_DATABASE_MAX_LIFETIME_MS",
    "pool_pre_ping": "a connection is always checked before it is lent",
    "pool_use_lifo": "the connection that was used last is always lent first",
    "pool": "the guarded pool is the only one",
    "poolclass": "the guarded pool is the only one",
    "creator": "the guarded pool opens all connections",
    "async_creator": "the guarded pool opens all connections",
    "connect_args": "the settings of the guarded pool say how to connect",
    "prepared_statement_cache_size": "the pool's profile decides on prepared statements",
    "prepared_statement_name_func": "the pool's profile decides on prepared statements",
    "native_inet_types": "it would change a session that other borrowers share; convert the values in a TypeDecorator",
}
"""Options of SQLAlchemy's own pool and of its driver, and what takes their place."""


def create_async_engine(pool: GuardedPool, **engine_options: Any) -> AsyncEngine:
    """Return an engine that borrows each connection from `pool`, whose breaker judges it. There is no second pool.

    A connection is borrowed when SQLAlchemy needs one, and released when its Session or Connection ends its
    transaction or is closed. `engine_options` are those of SQLAlchemy, except for the options of a pool or of a driver,
    which raise ConfigurationError. What `pool.acquire()` raises reaches the application as it is: CircuitOpenError,
    ConnectFailedError, AcquireTimeoutError, PoolClosedError. Errors of statements are SQLAlchemy's own.

    No I/O. The engine lives as long as the pool; `engine.dispose()` does not close the pool.
    """
    if faults := [f"{name} is not an option here: {_NOT_HERE[name]}." for name in engine_options if name in _NOT_HERE]:
        raise ConfigurationError(*faults)
    engine = create_plain_engine(
        URL.create(f"postgresql+{DRIVER}"),
        poolclass=NullPool,  # makes a record for each borrow, and keeps nothing
        async_creator=pool.acquire,
        **engine_options,
    )
    event.listen(engine.sync_engine.pool, "invalidate", note_invalidation)
    return engine

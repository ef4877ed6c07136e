"""What tests do to a pool that no caller can: the one module here that knows private names.

`tests/testing/test_inside.py` has a test for each of them, which fails in plain words when one changes.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, TypeVar

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.lent_connection import LentConnection, own_leftovers
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.connect.reset import AUTHORIZATION, DEALLOCATE, join
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.pool.acquisition import Acquisition
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.settings import DatabaseSettings

L = TypeVar("L", bound=LentConnection)


def core_of(pool: GuardedPool) -> PoolCore:
    """What outlives the pool's event loop."""
    return pool._core


def breaker_of(pool: GuardedPool) -> CircuitBreaker:
    """The pool's circuit breaker."""
    return pool._core.breaker


def credentials_of(pool: GuardedPool) -> Credentials | None:
    """What the pool was given as `credentials=`."""
    return pool._core._own_credentials


def loop_of(pool: GuardedPool) -> asyncio.AbstractEventLoop | None:
    """The event loop on which the pool has its sessions, if it has any."""
    loop_pool = pool._core.loop_pool
    return None if loop_pool is None or loop_pool.closed else loop_pool.loop


def own_settings(pool: GuardedPool) -> DatabaseSettings:
    """The settings of this pool and of no other: from now on a copy of those that it was given."""
    core = pool._core
    core._settings = settings = core.settings.model_copy()
    if core.loop_pool is not None:
        core.loop_pool.workers._connector._settings = settings
    return settings


def cut_off(pool: GuardedPool) -> None:
    """End the path of each session of the pool, as the network would: the pool is not told."""
    loop_pool = pool._core.loop_pool
    for connection in loop_pool.connections.all if loop_pool is not None else ():
        with contextlib.suppress(OSError):  # ended already
            connection._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def pooled_connection_of(acquisition: Acquisition) -> PooledConnection:
    """The connection that an acquisition has borrowed."""
    return acquisition._lease.connection


def lend_as(kind: type[L], connection: PooledConnection) -> L:
    """Lend a connection, to be used through a class of one's own, until `take_back`."""
    return kind(connection._holder, connection._connection, connection._bounds)


def reset_query(connection: PooledConnection, *, names: bool) -> str:
    """What the pool sends between two borrowers; `names`: whether there may be a name of SQL's own PREPARE."""
    parts = join(connection._traits.reset_plan.parts([AUTHORIZATION], connection._restore))
    return f"{parts};{DEALLOCATE}" if names else parts


def return_now(acquisition: Acquisition, *, changed_codecs: bool) -> None:
    """Return the connection of an acquisition that was lent to others meanwhile, and is lent to nobody now."""
    lease = acquisition._lease
    # unless somebody has ended the session meanwhile, as the end of the pool does
    lease.connection.closing = lease.connection not in acquisition._loop_pool.connections.lent
    lease.lent = lease.connection.lend()
    own_leftovers(lease.lent).changed_codecs = changed_codecs
    with contextlib.suppress(StopIteration):  # a release never waits
        acquisition.__aexit__(None, None, None).send(None)


async def wait_until_reset(acquisition: Acquisition, connection: PooledConnection, timeout: float) -> None:
    """Wait for the reset after `return_now`, for at most `timeout` seconds: the end of a loop would cancel it.

    That takes a second connection, for the cancel request.
    """
    under_way = acquisition._loop_pool.workers._tasks.items()
    resets = [task for task, (in_hand, _) in under_way if in_hand is connection]
    if resets:
        await asyncio.wait(resets, timeout=timeout)


def bare(connection: PooledConnection) -> Any:
    """asyncpg's own connection, which works whoever has it lent."""
    return connection._connection


def set_transaction(connection: PooledConnection, outermost: object) -> None:
    """asyncpg/transaction.py: a connection knows its outermost transaction; what begins inside of it is a savepoint.

    Without a statement: None where it has ended.
    """
    connection._connection._top_xact = outermost

"""Is a connection fit to be lent? Liveness of an idle one, and the clean-up after a borrower.

The decisions are pure. `check` and `reset` do what they ask for, and answer with the reason to close the connection, or
None.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Any

import asyncpg

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed, has_come
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.failures import server_spoke

PING_AFTER = 1.0
"""Seconds of idleness after which a clean socket no longer proves anything: a path can die silently."""

PING_TIMEOUT = 0.5
"""Seconds that one ping or one polite goodbye may take, at most."""

_PING_TIMEOUT_MIN = 0.1

RESET_TIMEOUT = 0.5
"""Seconds that the clean-up after a borrower may take, at most, the end of a cancelled statement included."""


class Health(enum.Enum):
    """What may be done with an idle connection; if it is to be closed, for that reason."""

    GOOD = enum.auto()
    """Lend it as it is."""
    SUSPECT = enum.auto()
    """Ping it first."""
    LOST = "lost"
    IDLE_TIMEOUT = "idle_timeout"
    MAX_LIFETIME = "max_lifetime"
    WRONG_NODE = "wrong_node"


def assess(closed: bool, readable: object, idle: float, idle_timeout: float, expired: bool, misplaced: bool) -> Health:
    """Decide what to do with an idle connection; times are in seconds.

    `readable` while idle is a FIN, a RST or a FATAL message, but perhaps only a notice or a TLS session ticket.
    """
    if closed:
        return Health.LOST
    if idle >= idle_timeout:
        return Health.IDLE_TIMEOUT
    if expired:
        return Health.MAX_LIFETIME
    if misplaced:
        return Health.WRONG_NODE
    if readable or idle >= PING_AFTER:
        return Health.SUSPECT
    return Health.GOOD


def health_of(connection: PooledConnection, idle_timeout: float, now: Instant) -> Health:
    """Assess an idle connection. Costs one poll of its socket and no round trip."""
    return assess(
        connection.is_closed(),
        connection.readable(),
        elapsed(connection.idle_since, now),
        idle_timeout,
        has_come(connection.expires_at, now),
        connection.wanted is not None and connection.misplaced,
    )


def ping_timeout(remaining: float) -> float:
    """Seconds for one ping, leaving most of the caller's `remaining` seconds to a new connection.

    Not less than 0.1, even where the caller has no time for that: its haste is no reason to give a connection up.
    """
    return min(PING_TIMEOUT, max(remaining / 4, _PING_TIMEOUT_MIN))


async def check(connection: PooledConnection, health: Health, timeout: float) -> str | None:
    """Find out whether an idle connection still works: if it is suspect, by one ping of at most `timeout` seconds."""
    if health is Health.GOOD:
        return None
    if health is not Health.SUSPECT:
        return str(health.value)
    try:
        await connection.ping(timeout)
    except Exception as error:
        return _reason_to_close(connection, error, otherwise="lost")
    return Health.WRONG_NODE.value if connection.misplaced else None


async def reset(connection: PooledConnection, answer: asyncio.Future[Any] | None) -> str | None:
    """Make a returned connection fit for the next borrower, within RESET_TIMEOUT.

    By the reset query, if the settings ask for it. Else one round trip proves that no statement runs any more; a
    connection with a transaction or a listener on it is closed, since only the reset query would clear that. One whose
    block was refused a write is asked whether the server is read-only. `answer`: of a usual reset, if that was sent.
    """
    if connection.unresettable:
        return "unclean"
    needs_cleanup = connection.needs_cleanup
    suspected, connection.suspected = connection.suspected, None
    try:
        if connection.resets:
            await connection.reset(RESET_TIMEOUT, needs_cleanup=needs_cleanup, answer=answer)
        elif not await connection.settle(RESET_TIMEOUT):
            return "unclean"
        if connection.taken_for_busy:
            return "unclean"
        if suspected is not None and await connection.is_unfit(clock.now(), RESET_TIMEOUT):
            return suspected
    except Exception as error:
        connection.lost_mid_statement = needs_cleanup and not server_spoke(error)
        return _reason_to_close(connection, error, otherwise="unclean")
    return None


def _reason_to_close(connection: PooledConnection, error: Exception, *, otherwise: str) -> str:
    if isinstance(error, TimeoutError):
        connection.terminate()  # what does not answer this will not answer a goodbye
        return "unresponsive"
    reason = "lost" if connection.is_closed() else otherwise
    if not isinstance(error, asyncpg.PostgresError):
        connection.terminate()  # the driver is out of step with the server
    return reason

"""One connection of the pool, for as long as its server session lives.

Only this module, `lent_connection`, `pooler_connection` and `sockets` use private names of asyncpg and asyncio.
asyncpg's pool owns every physical connection, but each is checked out of it once and lent from here: asyncpg's own
acquire and release cost more than a round trip on loopback, and its release is a task. `tests/test_connector.py` has a
test for each private name, which fails in plain words when asyncpg changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import warnings
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from asyncdb_guard.clock import Instant
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.connect.pooler_connection import PoolerConnection
from asyncdb_guard.connect.sockets import drop, hang_up, socket_probe
from asyncdb_guard.connect.startup import CLIENT_CHECK_INTERVAL

_CLIENT_CHECK_GRACE = 0.1
"""Seconds from that check until the session is gone."""


class PooledConnection:
    """One server session, checked out of asyncpg's pool; lives as long as that session."""

    __slots__ = (
        "_connection",
        "_holder",
        "_protocol",
        "_server_bound",
        "_transport",
        "_via_pooler",
        "closing",
        "has_leftovers",
        "idle_since",
        "is_closed",
        "lease",
        "lifetime",
        "lost_mid_statement",
        "opened_at",
        "readable",
        "unresettable",
    )

    def __init__(self, proxy: PoolConnectionProxy, now: Instant, lifetime: float, server_bound: float | None) -> None:
        bare: Any = proxy  # asyncpg's private names have no types
        self._holder = bare._holder
        # asyncpg/pool.py: _detach() returns the bare connection and disables the proxy
        self._connection: Any = bare._detach()
        self._protocol: Any = self._connection._protocol
        self._transport: Any = self._connection._transport
        # asyncpg/connection.py: ConnectionMeta makes isinstance() true for every connection
        self._via_pooler = type(self._connection) is PoolerConnection
        self.opened_at = now
        self.idle_since = now
        self.lifetime = lifetime
        self._server_bound = server_bound
        self.lease = 0
        """The number of the lease that owns it, or 0."""
        self.closing = False
        """Whether it is to be closed: it must not be lent again."""
        self.lost_mid_statement = False
        """Whether it was lost without a message from the server, which may still be running a statement."""
        self.has_leftovers = False
        """Whether the borrower left a listener or a running statement behind."""
        self.unresettable = False
        """Whether the borrower changed something that no reset restores."""
        self.is_closed: Callable[[], bool] = self._connection.is_closed
        """Whether the client knows that the session has ended. After a freeze it may not know yet."""
        raw = self._transport.get_extra_info("socket")
        self.readable: Callable[[], object] = socket_probe(raw.fileno() if raw is not None else None)

    def lend(self) -> LentConnection:
        """Return a connection that works until `take_back`, and raises InterfaceError afterwards."""
        lent = LentConnection(self._holder, self._connection)
        lent.server_bound = self._server_bound
        return lent

    def take_back(self, lent: LentConnection) -> None:
        """End a borrow: the borrower's connection, statements and cursors stop working.

        Warns with asyncpg.InterfaceWarning, as asyncpg does, if the borrower left a listener behind.
        """
        bare: Any = lent
        bare._detach()
        # asyncpg/connection.py: statements and cursors compare this number with the one they were created under
        self._connection._pool_release_ctr += 1
        self.has_leftovers = lent.running > 0 or lent.raised_server_bound
        self.unresettable = lent.changed_codecs
        if lent.listeners or lent.callbacks:
            self._remove_callbacks(lent)

    def _remove_callbacks(self, lent: LentConnection) -> None:
        for kind, callback in lent.callbacks:
            getattr(self._connection, f"remove_{kind}")(callback)
        self.has_leftovers = self.has_leftovers or bool(lent.listeners)
        left = len(lent.listeners) + sum(kind == "log_listener" for kind, _ in lent.callbacks)
        if left:
            warnings.warn(
                f"A connection was returned to the pool with {left} active listener(s). Remove each listener before"
                " the block ends.",
                asyncpg.InterfaceWarning,
                stacklevel=5,
            )

    @property
    def interrupted(self) -> bool:
        """Whether a statement was interrupted and the server has not yet confirmed its end."""
        return bool(self._protocol._is_cancelling())

    @property
    def needs_cleanup(self) -> bool:
        """Whether a statement is running or being cancelled, or the borrower left something behind on the server."""
        protocol, connection = self._protocol, self._connection
        return bool(
            self.interrupted
            or protocol.is_in_transaction()
            or connection._stmt_exclusive_section._acquired
            or (self._via_pooler and connection.keeps_backend)
            or self.has_leftovers
            or self.unresettable
            # asyncpg/transaction.py: set before BEGIN is sent, and still set if BEGIN fails
            or connection._top_xact is not None
        )

    async def settle(self, timeout: float) -> bool:
        """Wait until a cancelled statement has ended; return whether the connection is clean."""
        # asyncpg waits for the outstanding cancellation before it sends this, within the same timeout
        await self.ping(timeout)
        connection = self._connection
        return not (connection.is_in_transaction() or connection._top_xact is not None or self.has_leftovers)

    async def ping(self, timeout: float) -> None:
        """Make one round trip of at most `timeout` seconds. Raises whatever the driver raises."""
        await self._connection.execute("SELECT 1", timeout=timeout)

    async def reset(self, timeout: float, *, needs_cleanup: bool = True) -> None:
        """Roll back, and drop listeners, locks, cursors and settings, within `timeout` seconds."""
        connection = self._connection
        if needs_cleanup:
            await connection.reset(timeout=timeout)
        else:
            # what reset() does if there is nothing to roll back or to drop, in half the time
            await connection.execute(connection.get_reset_query(), timeout=timeout)

    async def close(self, timeout: float) -> None:
        """Close politely and wait for the server to close its side, for at most `timeout` seconds; then hang up."""
        lost_mid_statement = self.lost_mid_statement  # as it was before this close, which itself waits for the server
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await self._connection.close(timeout=timeout)
        self.terminate()
        if lost_mid_statement:
            await asyncio.sleep(CLIENT_CHECK_INTERVAL + _CLIENT_CHECK_GRACE)

    def terminate(self) -> None:
        """Hang up at once."""
        self._connection.terminate()

    def abandon(self) -> socket.socket | None:
        """Hang up without the event loop; return a socket for `sockets.wait_server_closed`, or None."""
        self._leave_holder()
        return hang_up(self._transport)

    def disown(self) -> None:
        """In a fork: drop the parent's session without sending a byte or touching the epoll that both share."""
        self._leave_holder()
        drop(self._transport)

    def _leave_holder(self) -> None:
        # asyncpg/connection.py: without a holder, its end notifies no pool; once aborted, it has no finaliser
        self._connection._pool_holder = None
        self._connection._aborted = True

"""One server session, and the only room that knows private names of asyncpg and asyncio.

asyncpg's pool owns every physical connection, but each is checked out of it once, for as long as it lives: its acquire
and release cost more than a round trip on loopback, and its release is a task. `tests/test_connector.py` has a test for
each private name, which fails in plain words when asyncpg changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from asyncdb_guard.clock import Instant
from asyncdb_guard.liveness import socket_probe

CONNECTION_CHECK = 0.25
"""Seconds after which a running statement looks for its client (client_connection_check_interval)."""

_NOTICE = 0.1
"""Seconds from that look until the session is gone."""


class PoolerConnection(asyncpg.Connection):
    """A connection through a pooler: it changes no setting, and knows whether a backend may still be kept for it.

    asyncpg/protocol/coreproto.pyx: it sends Parse, Describe and Flush, and Sync only with the Bind that follows. A
    pooler keeps the backend in between. Where nothing follows, since the arguments don't fit or the borrower was
    cancelled, an idle session would keep it for good: as many of those as there are backends stop a fleet.
    """

    keeps_backend = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        bare: Any = self
        # asyncpg/connection.py: it would set jit off and on again around each look-up of a type, which pins RDS Proxy,
        # and leaves it off on one of PgBouncer's backends
        bare._server_caps = bare._server_caps._replace(jit=False)

    async def _get_statement(self, *arguments: Any, **options: Any) -> Any:
        self.keeps_backend = True
        bare: Any = super()
        return await bare._get_statement(*arguments, **options)

    async def _do_execute(self, *arguments: Any, **options: Any) -> Any:
        bare: Any = super()
        answer = await bare._do_execute(*arguments, **options)
        self.keeps_backend = False
        return answer


def _counted(name: str) -> Any:
    """A method of the connection's that counts among what runs, as asyncpg itself does not tell."""
    method = getattr(PoolConnectionProxy, name)

    @functools.wraps(method)
    async def call(self: LentConnection, *arguments: Any, **options: Any) -> Any:
        self.running += 1
        try:
            return await method(self, *arguments, **options)
        finally:
            self.running -= 1

    return call


class LentConnection(PoolConnectionProxy):
    """What a borrower holds. It remembers that the borrower closed it, which is no loss."""

    hung_up = False
    running = 0
    """Statements of those kinds that asyncpg runs outside of its exclusive section."""

    @property
    def in_statement(self) -> bool:
        """Whether a statement was cut off just now: the server may still run it."""
        bare: Any = self
        return bool(bare._protocol._is_cancelling())

    async def close(self, *, timeout: float | None = None) -> None:
        self.hung_up = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        self.hung_up = True
        super().terminate()


for _name in ("execute", "copy_from_query", "copy_from_table", "copy_to_table", "copy_records_to_table"):
    setattr(LentConnection, _name, _counted(_name))


class Session:
    """One server session, checked out of asyncpg's pool; lives as long as the session does."""

    __slots__ = (
        "_connection",
        "_holder",
        "_protocol",
        "_proxied",
        "_transport",
        "ending",
        "idle_since",
        "is_closed",
        "lifetime",
        "occupied",
        "opened_at",
        "readable",
        "torn",
    )

    def __init__(self, proxy: PoolConnectionProxy, now: Instant, lifetime: float) -> None:
        bare: Any = proxy  # asyncpg's private names have no types
        self._holder = bare._holder
        # asyncpg/pool.py: _detach() hands out the bare connection and makes the proxy useless
        self._connection: Any = bare._detach()
        self._protocol: Any = self._connection._protocol
        self._transport: Any = self._connection._transport
        # asyncpg/connection.py: ConnectionMeta makes isinstance() say yes to every connection
        self._proxied = type(self._connection) is PoolerConnection
        self.opened_at = now
        self.idle_since = now
        self.lifetime = lifetime
        self.ending = False
        """Whether its goodbye has begun: it is not to be lent again."""
        self.torn = False
        """Whether it broke under a statement, which the server may run still."""
        self.occupied = False
        """Whether a borrower left on it what no round trip clears: a listener, or a statement that runs on."""
        self.is_closed: Callable[[], bool] = self._connection.is_closed
        """Whether this side knows that the session is over. After a freeze it may not know yet."""
        raw = self._transport.get_extra_info("socket")
        self.readable: Callable[[], object] = socket_probe(raw.fileno() if raw is not None else None)

    def lend(self) -> LentConnection:
        """Return a connection that works until `take_back`, and raises InterfaceError afterwards."""
        return LentConnection(self._holder, self._connection)

    def take_back(self, lent: LentConnection) -> None:
        """End a loan: the borrower's connection, statements and cursors are useless from now on."""
        bare: Any = lent
        bare._detach()
        connection = self._connection
        self.occupied = lent.running > 0
        # asyncpg/connection.py: counts releases, by which statements and cursors notice that theirs is over, and warns
        # of listeners, which it gathers each time
        if connection._listeners or connection._log_listeners:
            self.occupied = True
            connection._on_release()
        else:
            connection._pool_release_ctr += 1
        if connection._query_loggers:  # not even its reset ends them, and they see statements with their arguments
            connection._query_loggers.clear()

    @property
    def unsettled(self) -> bool:
        """Whether a statement is being cancelled or still runs, or anything of the borrower's is left on the server."""
        protocol, connection = self._protocol, self._connection
        return bool(
            protocol._is_cancelling()
            or protocol.is_in_transaction()
            or connection._stmt_exclusive_section._acquired
            or (self._proxied and connection.keeps_backend)
            or self.occupied
            # asyncpg/transaction.py: remembered before BEGIN is sent, and still so where that failed
            or connection._top_xact is not None
        )

    async def quiesce(self, timeout: float) -> bool:
        """Wait until a cancelled statement is over; return whether the session is then free of its borrower."""
        # asyncpg waits for the outstanding cancellation before it sends this, within the same timeout
        await self.ping(timeout)
        connection = self._connection
        return not (connection.is_in_transaction() or connection._top_xact is not None or self.occupied)

    async def ping(self, timeout: float) -> None:
        """One round trip of at most `timeout` seconds; raises whatever went wrong."""
        await self._connection.execute("SELECT 1", timeout=timeout)

    async def reset(self, timeout: float) -> None:
        """asyncpg's reset: roll back, drop listeners, locks, cursors and settings; `timeout` in seconds."""
        await self._connection.reset(timeout=timeout)

    async def close(self, timeout: float) -> None:
        """Say goodbye and wait until the server has let go, for at most `timeout` seconds; then just hang up."""
        torn = self.torn  # not by this goodbye, which waits for the server itself
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await self._connection.close(timeout=timeout)
        self.terminate()
        if torn:
            await asyncio.sleep(CONNECTION_CHECK + _NOTICE)

    def terminate(self) -> None:
        """Hang up at once."""
        self._connection.terminate()

    def abandon(self) -> socket.socket | None:
        """Hang up without the event loop, which is closed or is not ours to run; return what `gone` waits for."""
        self._orphan()
        leaving = None
        with contextlib.suppress(OSError, AttributeError):  # closed already, or no socket to be had
            leaving = self._transport.get_extra_info("socket").dup()
            leaving.setblocking(False)
            leaving.shutdown(socket.SHUT_WR)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._transport.pause_reading()
        _drop(self._transport)
        return leaving

    def disown(self) -> None:
        """Let go of a parent process's session: no byte, no call on the epoll that both share, no goodbye later on."""
        self._orphan()
        _drop(self._transport)

    def _orphan(self) -> None:
        # asyncpg/connection.py: without a holder its end wakes no pool, and an aborted one is not finalised
        self._connection._pool_holder = None
        self._connection._aborted = True


def _drop(transport: Any) -> None:
    """Close this process's descriptor of a connection, with no help from the event loop and no word to the server.

    asyncio/selector_events.py: `_call_connection_lost` is what a loop would run next; where it is missing (uvloop),
    the socket is shut down, and the loop's own end does the rest.
    """
    layers = getattr(transport, "_ssl_protocol", None)
    with contextlib.suppress(RuntimeError, AttributeError):
        if layers is not None:
            transport._closed = True
            transport = layers._transport
        # a later socket may get the same descriptor: the loop shall not take this transport for its owner
        transport._closing = True
        transport._call_connection_lost(None)


async def gone(leaving: socket.socket, timeout: float) -> None:
    """Wait until the server has let go of an abandoned session, for at most `timeout` seconds."""
    with leaving, contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(timeout):
            while await asyncio.get_running_loop().sock_recv(leaving, 4096):
                pass

"""How a connection comes to be: log in, adopt, wrap."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from typing import Any

import asyncpg

from asyncdb_guard import clock
from asyncdb_guard.connect.adopting_pool import AdoptingPool
from asyncdb_guard.connect.credentials import Credentials, FixedCredentials
from asyncdb_guard.connect.pooled_connection import CLIENT_CHECK_INTERVAL, PooledConnection
from asyncdb_guard.connect.pooler_connection import PoolerConnection
from asyncdb_guard.connect.sockets import wait_server_closed
from asyncdb_guard.connect.tls import TlsContexts
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.target import ConnectTarget
from asyncdb_guard.verdict import login_refused

_SERVER_TIMEOUT_GRACE = 0.25
"""Seconds by which the server's idle timeout is later than ours, so that a live process ends its own sessions."""

_GOODBYE_TIMEOUT = 0.25
"""Seconds to wait, at most, until the server has let go of a session that was left behind."""


class Connector:
    """Opens connections one by one; lives as long as its event loop.

    `lingering`: what remains of the sessions on an earlier event loop. The first connect waits until they are gone.
    """

    def __init__(
        self, settings: DatabaseSettings, credentials: Credentials, lingering: Sequence[socket.socket] = ()
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._lingering = list(lingering)
        self._tls = TlsContexts()
        self._pool = AdoptingPool(settings.pool_max)
        self._server_knows_timeouts = True

    @property
    def renews_login(self) -> bool:
        """Whether a refused login is tried once more with credentials fetched anew."""
        return not isinstance(self._credentials, FixedCredentials)

    async def connect(self) -> PooledConnection:
        """Open one connection within `connect_timeout`; raise what the driver raises.

        A connection that opened too late is closed again.
        """
        login: asyncio.Task[asyncpg.Connection] | None = None
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                while self._lingering:
                    await wait_server_closed(self._lingering.pop(), _GOODBYE_TIMEOUT)
                # a task: a cancellation that comes together with the connection must not lose the connection
                login = asyncio.create_task(self._log_in())
                await asyncio.wait({login})
            proxy = await self._pool.adopt(login.result())
        except BaseException:
            if login is not None:
                await _undo(login)
            raise
        return PooledConnection(proxy, clock.now(), self._draw_lifetime())

    async def _log_in(self) -> asyncpg.Connection:
        target = await self._credentials.complete(self._settings.target)
        try:
            return await self._open(target)
        except asyncpg.PostgresError as error:
            if not (self.renews_login and login_refused(error)):
                raise
        # outside the except block: a second refusal must not carry the first one along
        return await self._open(await self._credentials.complete(self._settings.target, refused=target))

    async def _open(self, target: ConnectTarget) -> asyncpg.Connection:
        via_pooler = self._settings.proxied
        options: dict[str, Any] = {
            "host": target.host,
            "port": target.port,
            "user": target.user,
            "password": target.password.get_secret_value() if target.password is not None else None,
            "database": target.database,
            "ssl": self._tls.context(target),
            "command_timeout": self._settings.command_timeout,
            "statement_cache_size": 0 if via_pooler else 100,
            "connection_class": PoolerConnection if via_pooler else asyncpg.Connection,
        }
        if not via_pooler and self._server_knows_timeouts:
            try:
                return await asyncpg.connect(server_settings=self._session_settings(target), **options)
            except asyncpg.UndefinedObjectError:
                # a server before PostgreSQL 14; it has only our own timer
                self._server_knows_timeouts = False
        return await asyncpg.connect(server_settings=_plain_settings(target), **options)

    def _session_settings(self, target: ConnectTarget) -> dict[str, str]:
        """What the server does for us while we are frozen, or after we were killed."""
        idle = str(round((self._settings.idle_timeout + _SERVER_TIMEOUT_GRACE) * 1000))
        return _plain_settings(target) | {
            "idle_session_timeout": idle,
            "idle_in_transaction_session_timeout": idle,
            "client_connection_check_interval": str(round(CLIENT_CHECK_INTERVAL * 1000)),
        }

    def _draw_lifetime(self) -> float:
        # ±10 %, so that sessions opened together are not replaced together
        return self._settings.max_lifetime * random.uniform(0.9, 1.1)

    def terminate(self) -> None:
        """End asyncpg's pool at once."""
        self._pool.terminate()


async def _undo(attempt: asyncio.Task[asyncpg.Connection]) -> None:
    """End a login that nobody wants any more, whether it is still under way or done."""
    attempt.cancel()
    await asyncio.wait({attempt})
    # never result() of a failed one: that would cut off its error's traceback, which says whose error it is
    if not attempt.cancelled() and attempt.exception() is None:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await attempt.result().close(timeout=_GOODBYE_TIMEOUT)


def _plain_settings(target: ConnectTarget) -> dict[str, str]:
    """Startup parameters that every server takes; a pooler, too, since it is given no search_path."""
    settings: dict[str, str] = {}
    if target.application_name is not None:
        settings["application_name"] = target.application_name
    if target.schema is not None:
        settings["search_path"] = '"' + target.schema.replace('"', '""') + '"'
    return settings

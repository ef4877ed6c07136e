"""The one file that opens asyncpg pools: `min_size = max_size = pool_max`, and nothing opened that nobody asked for."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from typing import Any

import asyncpg

from asyncdb_guard import clock
from asyncdb_guard.connect.credentials import Credentials, FixedCredentials
from asyncdb_guard.connect.diagnosis import login_refused
from asyncdb_guard.connect.session import CONNECTION_CHECK, PoolerConnection, Session, gone
from asyncdb_guard.connect.tls import TlsContexts
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.target import ConnectTarget

_SERVER_GRACE = 0.25
"""Seconds by which the server's idle timeout is later than ours, so that a live process always ends its own."""

_GOODBYE = 0.25
"""Seconds to wait, at most, until the server has let go of a session that was left behind on another event loop."""


class Connector:
    """Opens sessions through one asyncpg pool; lives as long as its event loop.

    The pool is made at the first connect and kept only once it opened
    (asyncpg/pool.py: after a failed `await pool`, a second one returns silently). `leaving` are what remains of the
    sessions on an event loop before this one: the first connect waits until they are gone.
    """

    def __init__(
        self, settings: DatabaseSettings, credentials: Credentials, leaving: Sequence[socket.socket] = ()
    ) -> None:
        self._settings = settings
        self._leaving = list(leaving)
        self._credentials = credentials
        self._tls = TlsContexts()
        self._pool: asyncpg.Pool | None = None
        self._asked_for: list[asyncpg.Connection] = []
        self._understands_timeouts = True

    @property
    def next_batch(self) -> int:
        """How many sessions the next connect opens: all `pool_max` the first time, as asyncpg's min_size demands."""
        return self._settings.pool_max if self._pool is None else 1

    @property
    def renews_login(self) -> bool:
        """Whether a login that the server refuses is tried once more with credentials fetched anew."""
        return not isinstance(self._credentials, FixedCredentials)

    async def open(self) -> list[Session]:
        """Open one session, or all of them the first time, within `connect_timeout`.

        Raises what the driver raises. Whatever had opened by then is closed, and the server has let go of it.
        """
        connects: list[asyncio.Task[asyncpg.Connection]] = []
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                while self._leaving:
                    await gone(self._leaving.pop(), _GOODBYE)
                connects += [asyncio.create_task(self._log_in()) for _ in range(self.next_batch)]
                # to the end, also when one fails: a connect that is torn leaves the server with a session to clear up
                await asyncio.wait(connects)
                self._asked_for += [connect.result() for connect in connects]
                return await self._check_out(len(connects))
        except BaseException:
            self._asked_for.clear()
            await self._undo(connects)
            raise

    async def _check_out(self, count: int) -> list[Session]:
        pool = self._pool
        if pool is None:
            pool = self._create_pool()
            await pool
            self._pool = pool
        return [Session(await pool.acquire(), clock.now(), self._lifetime()) for _ in range(count)]

    async def _undo(self, connects: list[asyncio.Task[asyncpg.Connection]]) -> None:
        for connect in connects:
            connect.cancel()
        outcomes = await asyncio.gather(*connects, return_exceptions=True)
        opened = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        await asyncio.gather(*(connection.close(timeout=_GOODBYE) for connection in opened), return_exceptions=True)

    def _create_pool(self) -> asyncpg.Pool:
        return asyncpg.create_pool(
            min_size=self._settings.pool_max,
            max_size=self._settings.pool_max,
            # asyncpg/pool.py: min_size is a floor since 0.32, so its own idle timer closes nothing; ours does
            max_inactive_connection_lifetime=0,
            connect=self._hand_over,
        )

    async def _hand_over(self, *_dsn: object, **_options: object) -> asyncpg.Connection:
        """What asyncpg's pool calls for each physical connection: it gets those that a borrower asked for."""
        if not self._asked_for:
            # asyncpg/pool.py: the floor maintenance connects though nobody asked; it passes a CancelledError on
            # without a log or a retry
            raise asyncio.CancelledError
        return self._asked_for.pop()

    async def _log_in(self) -> asyncpg.Connection:
        target = await self._credentials.complete(self._settings.target)
        try:
            return await self._dial(target)
        except asyncpg.PostgresError as error:
            if not (self.renews_login and login_refused(error)):
                raise
        # outside the except block: a second refusal must not drag the first along
        return await self._dial(await self._credentials.complete(self._settings.target, refused=target))

    async def _dial(self, target: ConnectTarget) -> asyncpg.Connection:
        options: dict[str, Any] = {
            "host": target.host,
            "port": target.port,
            "user": target.user,
            "password": target.password.get_secret_value() if target.password is not None else None,
            "database": target.database,
            "ssl": self._tls.context(target),
            "command_timeout": self._settings.command_timeout,
            "statement_cache_size": 0 if self._settings.proxied else 100,
            "connection_class": PoolerConnection if self._settings.proxied else asyncpg.Connection,
        }
        if not self._settings.proxied and self._understands_timeouts:
            try:
                return await asyncpg.connect(server_settings=self._session_settings(target), **options)
            except asyncpg.UndefinedObjectError:
                # a server before PostgreSQL 14; it has only our own timer
                self._understands_timeouts = False
        return await asyncpg.connect(server_settings=_plain_settings(target), **options)

    def _session_settings(self, target: ConnectTarget) -> dict[str, str]:
        """What the server shall do for us while we are frozen, or when we are killed."""
        idle = str(round((self._settings.idle_timeout + _SERVER_GRACE) * 1000))
        return _plain_settings(target) | {
            "idle_session_timeout": idle,
            "idle_in_transaction_session_timeout": idle,
            "client_connection_check_interval": str(round(CONNECTION_CHECK * 1000)),
        }

    def _lifetime(self) -> float:
        # ±10 %, so that sessions opened together are not replaced together
        return self._settings.max_lifetime * random.uniform(0.9, 1.1)

    def terminate(self) -> None:
        """End asyncpg's pool at once; whatever it still holds is hung up."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                pool.terminate()


def _plain_settings(target: ConnectTarget) -> dict[str, str]:
    """Startup parameters that every server takes; a proxy, too, since it is given no search_path."""
    settings: dict[str, str] = {}
    if target.application_name is not None:
        settings["application_name"] = target.application_name
    if target.schema is not None:
        settings["search_path"] = '"' + target.schema.replace('"', '""') + '"'
    return settings

"""The one file that opens asyncpg pools: `min_size = max_size = pool_max`, and nothing opened that nobody asked for."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import asyncpg

from asyncdb_guard import clock
from asyncdb_guard.credentials import Credentials, FixedCredentials
from asyncdb_guard.session import Session, gone
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.target import ConnectTarget
from asyncdb_guard.tls import tls_context

_SERVER_GRACE = 0.25
"""Seconds by which the server's idle timeout is later than ours, so that a live process always ends its own."""

_CONNECTION_CHECK = "250"
"""Milliseconds after which a running statement notices that its client is gone."""

_GOODBYE = 0.25
"""Seconds to wait, at most, until the server has let go of a session that was left behind on another event loop."""


class _Attempt:
    """One try to open sessions, for which a borrower asked."""

    __slots__ = ("dialling", "over")

    def __init__(self) -> None:
        self.over = False
        self.dialling: set[asyncio.Task[Any]] = set()


_attempt: ContextVar[_Attempt | None] = ContextVar("asyncdb_guard_attempt", default=None)


class Driver:
    """Opens sessions through one asyncpg pool; lives as long as its event loop.

    The pool is made at the first connect and kept only once it opened
    (asyncpg/pool.py: after a failed `await pool`, a second one returns silently). `leaving` are what remains of the
    sessions on an event loop before this one: the first connect waits until they are gone.
    """

    def __init__(
        self, settings: DatabaseSettings, credentials: Credentials | None, leaving: Sequence[socket.socket] = ()
    ) -> None:
        self._settings = settings
        self._leaving = list(leaving)
        self._fixed = credentials is None
        self._credentials: Credentials = credentials or FixedCredentials()
        self._pool: asyncpg.Pool | None = None
        self._understands_timeouts = True

    @property
    def opens_all(self) -> bool:
        """Whether the next connect opens all `pool_max` sessions at once, as asyncpg's min_size demands."""
        return self._pool is None

    @property
    def renews_login(self) -> bool:
        """Whether a login that the server refuses is tried once more with credentials fetched anew."""
        return not self._fixed

    async def open(self) -> list[Session]:
        """Open one session, or all of them the first time. Raises what the driver raises.

        Whoever calls this bounds it in time; a cancelled call leaves nothing behind.
        """
        attempt = _Attempt()
        opened: list[Session] = []
        token = _attempt.set(attempt)
        try:
            while self._leaving:
                await gone(self._leaving.pop(), _GOODBYE)
            pool = self._pool
            count = 1
            if pool is None:
                pool, count = self._create_pool(), self._settings.pool_max
                await pool
                self._pool = pool
            for _ in range(count):
                opened.append(Session(await pool.acquire(), clock.now(), self._lifetime()))
            return opened
        except BaseException:
            for session in opened:
                session.terminate()
            raise
        finally:
            attempt.over = True
            _attempt.reset(token)
            # asyncpg/pool.py gathers its first connects: when one fails, the others would go on
            for task in attempt.dialling:
                task.cancel()

    def _create_pool(self) -> asyncpg.Pool:
        settings = self._settings
        return asyncpg.create_pool(
            min_size=settings.pool_max,
            max_size=settings.pool_max,
            # asyncpg/pool.py: min_size is a floor since 0.32, so its own idle timer closes nothing; ours does
            max_inactive_connection_lifetime=0,
            connect=self._connect,
            command_timeout=settings.command_timeout,
            statement_cache_size=0 if settings.proxied else 100,
        )

    async def _connect(self, *_dsn: object, **options: Any) -> asyncpg.Connection:
        """What asyncpg's pool calls for each physical connection."""
        attempt = _attempt.get()
        if attempt is None or attempt.over:
            # asyncpg/pool.py: the floor maintenance connects though nobody asked; it passes a CancelledError on
            # without a log or a retry
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        attempt.dialling.add(task)
        try:
            return await self._log_in(options)
        finally:
            attempt.dialling.discard(task)

    async def _log_in(self, options: dict[str, Any]) -> asyncpg.Connection:
        target = await self._credentials.complete(self._settings.target)
        try:
            return await self._dial(target, options)
        except asyncpg.InvalidAuthorizationSpecificationError:
            if self._fixed:
                raise
        # outside the except block: a second refusal must not drag the first along
        return await self._dial(await self._credentials.complete(self._settings.target, renew=True), options)

    async def _dial(self, target: ConnectTarget, options: dict[str, Any]) -> asyncpg.Connection:
        options = options | {
            "host": target.host,
            "port": target.port,
            "user": target.user,
            "password": target.password.get_secret_value() if target.password is not None else None,
            "database": target.database,
            "ssl": tls_context(target),
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
            "client_connection_check_interval": _CONNECTION_CHECK,
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
    settings = {}
    if target.application_name is not None:
        settings["application_name"] = target.application_name
    if target.schema is not None:
        settings["search_path"] = '"' + target.schema.replace('"', '""') + '"'
    return settings

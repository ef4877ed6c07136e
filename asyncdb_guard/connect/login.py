"""One login in progress. Cancelling it is not enough: the server may still start the session.

So a cancelled login keeps its place until the server has closed its side of the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

import asyncpg

from asyncdb_guard.connect.sockets import (
    clear_variables,
    end_if_lost,
    give_up_tls,
    half_close,
    transport_of,
    wait_server_closed,
)

_GOODBYE_TIMEOUT = 0.25
"""Seconds to close, politely, a session that nobody needs any more."""


async def _without_variables(log_in: Coroutine[None, None, asyncpg.Connection]) -> asyncpg.Connection:
    """Await `log_in`; if it fails, empty the frames of the traceback: those of asyncpg hold the password."""
    try:
        return await log_in
    except Exception as error:
        clear_variables(error)
        raise


class Login:
    """A task that logs in; lives until it has a connection or an error."""

    def __init__(self, log_in: Coroutine[None, None, asyncpg.Connection]) -> None:
        # a task, so that a cancellation at the moment the connection arrives does not lose it
        self._task = asyncio.create_task(_without_variables(log_in))

    async def result(self, timeout: float) -> asyncpg.Connection:
        """Return the connection, or raise what the driver raised; TimeoutError after `timeout` seconds."""
        done, _ = await asyncio.wait({self._task}, timeout=timeout)
        if not done:
            raise TimeoutError
        return self._task.result()

    async def end(self, timeout: float) -> None:
        """End a late or unwanted login, and wait for the server to close it, for at most `timeout` seconds."""
        transport = transport_of(self._task)
        lingering = half_close(transport)
        try:
            give_up_tls(transport)
            self._task.cancel()
            # somebody else's code may suppress the cancellation: that of a credentials provider
            await asyncio.wait({self._task}, timeout=max(timeout, _GOODBYE_TIMEOUT))
            if transport is not None:
                # asyncpg only closes the transport, and a TLS transport then waits half a minute for its peer
                transport.abort()
            if _succeeded(self._task):
                with contextlib.suppress(Exception):
                    await self._task.result().close(timeout=_GOODBYE_TIMEOUT)
            elif lingering is not None and self._task.done():
                await wait_server_closed(lingering, timeout)
        finally:
            if not self._task.done():
                self.abandon()
            if lingering is not None:
                lingering.close()

    def abandon(self) -> None:
        """Let a login go that does not end. It keeps no session, should it still get one."""
        self._task.add_done_callback(_terminate)
        self._task.cancel()
        end_if_lost(self._task)


def _terminate(login: asyncio.Task[asyncpg.Connection]) -> None:
    if _succeeded(login):
        login.result().terminate()


def _succeeded(task: asyncio.Task[asyncpg.Connection]) -> bool:
    """Whether a login has got a connection; looks at its error, if it has one, so that asyncio does not log that."""
    return task.done() and not task.cancelled() and task.exception() is None

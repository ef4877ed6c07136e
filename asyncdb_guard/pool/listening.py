"""LISTEN as an async iterator: it holds one session of the pool, and a new one after that is lost."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import asyncpg

from asyncdb_guard.errors import ConfigurationError, DatabaseUnavailableError, PoolClosedError
from asyncdb_guard.events import logger
from asyncdb_guard.pool.acquisition import Acquisition
from asyncdb_guard.pool.core import PoolCore
from asyncdb_guard.pool.feed import Feed, Note, NotificationsMissed

_RETRY_AFTER = 1.0
"""Seconds until the next attempt to listen again, if the error does not say."""

_CHECK_INTERVAL = 30.0
"""Seconds without a notification after which the connection is checked: a dead path is silent, too."""

_CHECK_TIMEOUT = 5.0
"""Seconds for the answer to that check."""

_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_NO_CHANNEL = "listen() needs the name of at least one channel."
_POOLER = (
    "listen() needs a direct connection: behind a transaction pooler, notifications reach whoever has the session next."
    " Use a pool of its own for it, whose URL leads to the server."
)
_ONLY_SESSION = (
    "listen() holds the only session of this pool, so every other caller will time out. Set"
    " LAMBDA_DATABASE_POOL_MAX to 2 or more, or use a pool of its own for it."
)


class Listening:
    """What `GuardedPool.listen()` returns; good for one `async for`, or one `async with` around it."""

    def __init__(self, core: PoolCore, channels: tuple[str, ...]) -> None:
        if not channels:
            raise ConfigurationError(_NO_CHANNEL)
        self._core = core
        self._channels = channels
        self._feed: Feed | None = None
        self._acquisition: Acquisition | None = None

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Note:
        feed = self._feed if self._feed is not None else await self._begin()
        while not feed.notes:
            if feed.closed:
                await self.aclose()
                raise StopAsyncIteration
            if feed.lost:
                await self._begin_again(feed)
            elif not await feed.wait(_CHECK_INTERVAL):
                await self._check(feed)
        return feed.notes.popleft()

    async def aclose(self) -> None:
        """Stop listening and return the connection. Calling it again does nothing."""
        self._release(None)

    async def _begin(self) -> Feed:
        feed = Feed()
        self._core.feeds.add(feed)  # the pool may be closed before anything is heard
        await self._listen(feed)
        self._feed = feed
        if self._core.settings.pool_max == 1:
            logger.warning(_ONLY_SESSION)
        return feed

    def _acquire(self) -> Acquisition:
        return Acquisition(self._core, None)

    async def _listen(self, feed: Feed) -> None:
        acquisition = self._acquire()
        connection = await acquisition.__aenter__()
        try:
            if self._core.through_pooler:
                raise ConfigurationError(_POOLER)
            connection.listens = True
            if self._core.sets_idle_timeout:  # until the reset at the end
                await connection.execute("SET idle_session_timeout = 0")
            connection.add_termination_listener(feed.lose)
            for channel in self._channels:
                await connection.add_listener(channel, feed.hear)
        except BaseException as error:
            acquisition.release(error)
            raise
        acquisition.confirm()
        self._acquisition = acquisition

    async def _begin_again(self, feed: Feed) -> None:
        """Listen on a new connection as soon as there is one; the breaker decides when to try."""
        self._release(None)
        feed.lost = False
        try:
            await self._listen(feed)
        except PoolClosedError:
            return  # the feed is closed, too
        except DatabaseUnavailableError as error:
            feed.lost = True
            await feed.wait(error.retry_after or _RETRY_AFTER)
        except _LOST:
            feed.lost = True
            await feed.wait(_RETRY_AFTER)
        except BaseException:  # the reader was cancelled, or `init=` failed: it listens again at its next step
            feed.lost = True
            raise
        else:
            feed.notes.append(NotificationsMissed())

    async def _check(self, feed: Feed) -> None:
        assert self._acquisition is not None
        connection = self._acquisition.connection
        try:
            await connection.execute("SELECT 1", timeout=_CHECK_TIMEOUT)
        except _LOST as error:
            connection.terminate()
            self._release(error)
            feed.lost = True

    def _release(self, error: BaseException | None) -> None:
        """Return the connection, whose reset ends the LISTEN and restores the idle timeout. Never waits."""
        acquisition, self._acquisition = self._acquisition, None
        if acquisition is not None:
            acquisition.release(error)

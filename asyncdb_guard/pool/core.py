"""What outlives an event loop: settings, credentials, breaker, counters. One LoopPool at a time serves them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable
from socket import socket
from typing import TYPE_CHECKING

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.bulletin import open_bulletin
from asyncdb_guard.connect.credentials import Credentials, credentials_for
from asyncdb_guard.connect.initialization import Init, checked
from asyncdb_guard.connect.sockets import wait_server_closed
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.errors import ConfigurationError, PoolClosedError, PoolInUseError
from asyncdb_guard.events import Events, Listener
from asyncdb_guard.pool import registry
from asyncdb_guard.pool.loop_pool import LoopPool
from asyncdb_guard.pool.observers import Observers
from asyncdb_guard.pool.stats import Counters, Totals
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.pooler_profile import DIRECT

if TYPE_CHECKING:
    from asyncdb_guard.bulletin.board import Bulletin
    from asyncdb_guard.pool.feed import Feed

_inherited: list[LoopPool] = []
"""The parent's, in a fork."""


class PoolCore:
    """Born closed; follows its caller to another event loop or into a forked child; lives as long as its pool."""

    def __init__(
        self,
        settings: DatabaseSettings | None,
        credentials: Credentials | None,
        listeners: Listener | Iterable[Listener],
        init: Init | None = None,
    ) -> None:
        self._settings: object = settings  # judged on first use, as a pool may be made at import
        self._own_credentials = credentials
        self._init = checked(init)
        self._credentials: Credentials | None = None
        self._traits: ServerTraits | None = None
        self._breaker: CircuitBreaker | None = None
        self._bulletin: Bulletin | None = None
        self.events = Events(listeners)
        self.observers = Observers()
        self.counters = Counters()
        self.feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
        """What the running `listen()` read from."""
        self.loop_pool: LoopPool | None = None
        self._lingering: list[socket] = []
        """What remains of the sessions on an earlier event loop."""
        self.closed = False

    @property
    def settings(self) -> DatabaseSettings:
        """The settings, read from the environment on first use. Raises ConfigurationError."""
        if self._settings is None:
            self._settings = DatabaseSettings()
        if not isinstance(self._settings, DatabaseSettings):
            raise ConfigurationError(
                "GuardedPool needs an instance of DatabaseSettings, as in GuardedPool(DatabaseSettings(url=...)), or"
                " nothing, to read the environment."
            )
        return self._settings

    @property
    def breaker(self) -> CircuitBreaker:
        """The one breaker, over all event loops."""
        if self._breaker is None:
            settings = self.settings
            self._breaker = CircuitBreaker(
                fail_max=settings.breaker_fail_max,
                reset_timeout=settings.breaker_reset_timeout,
                reset_timeout_max=settings.breaker_reset_timeout_max,
                trial_lease=settings.connect_timeout + settings.command_timeout,
                emit=self.events.emit,
            )
        return self._breaker

    def totals(self) -> Totals:
        """Everything counted so far. Reads no settings."""
        return {**self.counters.snapshot(), "circuit_openings": self._breaker.openings if self._breaker else 0}

    def here(self) -> LoopPool:
        """The pool on the running event loop, a new one if the last one was on another loop.

        Raises PoolClosedError, PoolInUseError and ConfigurationError.
        """
        loop_pool = self.loop_pool
        if loop_pool is not None and loop_pool.loop is asyncio.get_running_loop() and not loop_pool.closed:
            return loop_pool
        if self.closed:
            raise PoolClosedError
        settings, breaker = self.settings, self.breaker
        if self._credentials is None:
            self._credentials = credentials_for(settings, self._own_credentials)
        if self._traits is None:
            self._bulletin = open_bulletin(settings)
            self._traits = ServerTraits(
                settings.idle_timeout, settings.command_timeout, settings.target.server_settings
            )
        if loop_pool is not None:
            self._lingering += _leave(loop_pool)
        self.loop_pool = LoopPool(
            settings, self._credentials, self._traits, breaker, self._bulletin, self.events, self.counters,
            self._lingering, self._init,
        )  # fmt: skip
        self._lingering = []
        registry.add(self)
        return self.loop_pool

    @property
    def through_pooler(self) -> bool:
        """Whether a transaction pooler stands in between, as the settings say or a connect has shown."""
        return self.settings.profile is not DIRECT or (self._traits is not None and self._traits.pooler)

    @property
    def sets_idle_timeout(self) -> bool:
        """Whether sessions have our own idle_session_timeout."""
        return self._traits is not None and self._traits.sets_idle_timeout

    def _close_feeds(self) -> None:
        for feed in tuple(self.feeds):
            feed.close()

    async def close(self, timeout: float) -> None:
        """End the pool for good within `timeout` seconds; borrowers may finish, then they are cut off."""
        self.closed = True
        self._close_feeds()
        loop_pool = self.loop_pool
        try:
            if loop_pool is not None and loop_pool.loop is asyncio.get_running_loop():
                await loop_pool.close(timeout)
            elif loop_pool is not None:
                await _end_elsewhere(loop_pool, timeout)
        finally:
            self.loop_pool = None
            registry.discard(self)
            if self._bulletin is not None:
                self._bulletin.close()

    def terminate(self) -> None:
        """End the pool for good, at once and without a goodbye. Call it on the pool's own event loop."""
        self.closed = True
        self._close_feeds()
        loop_pool, self.loop_pool = self.loop_pool, None
        registry.discard(self)
        if self._bulletin is not None:
            self._bulletin.close()
        if loop_pool is not None and not loop_pool.closed:
            if loop_pool.loop.is_closed():
                for lingering in loop_pool.abandon():
                    lingering.close()
            else:
                loop_pool.terminate()

    async def settle(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds until the pool can be frozen.

        By then the server runs no statement that was broken off, and the fleet has been told.
        """
        if self._bulletin is not None:
            await self._bulletin.settle(timeout)
        if self.loop_pool is not None:
            await self.loop_pool.workers.settle(timeout)

    @property
    def interrupted(self) -> bool:
        """Whether the server may still run a statement that was broken off, or the fleet is still being told."""
        telling = self._bulletin is not None and self._bulletin.telling
        return telling or (self.loop_pool is not None and self.loop_pool.workers.interrupted)

    def abandon(self) -> None:
        """Let go of all sessions without their event loop, which no longer runs; the next use opens new ones."""
        loop_pool, self.loop_pool = self.loop_pool, None
        if loop_pool is not None and not loop_pool.closed:
            self._lingering += loop_pool.abandon()

    def disown(self) -> None:
        """In a fork: leave all sessions to the parent process."""
        loop_pool, self.loop_pool = self.loop_pool, None
        if loop_pool is not None:
            # kept for the life of the child: the loop's own finaliser would unregister from the epoll that both share
            _inherited.append(loop_pool)
            loop_pool.disown()

    async def disconnect(self, timeout: float) -> None:
        """End all sessions within `timeout` seconds, running statements included; the next use opens new ones."""
        loop_pool = self.loop_pool
        if loop_pool is None:
            return
        if loop_pool.loop is asyncio.get_running_loop():
            # in the same places: whoever asks meanwhile waits until one is vacant
            await loop_pool.disconnect(timeout)
        else:
            await _end_elsewhere(loop_pool, timeout)
            self.loop_pool = None
            registry.discard(self)


def _leave(loop_pool: LoopPool) -> list[socket]:
    """Let go of the sessions on another event loop; return the sockets that linger. Raises PoolInUseError."""
    if loop_pool.closed:
        return []
    if loop_pool.loop.is_running():
        raise PoolInUseError
    return loop_pool.abandon()


async def _end_elsewhere(loop_pool: LoopPool, timeout: float) -> None:
    """End the sessions on another event loop: by that loop while it runs, else without it."""
    if loop_pool.loop.is_running() and not loop_pool.closed:
        end = asyncio.run_coroutine_threadsafe(loop_pool.close(timeout), loop_pool.loop)
        await asyncio.wait({asyncio.wrap_future(end)}, timeout=timeout)
        return
    for lingering in _leave(loop_pool):
        await wait_server_closed(lingering, timeout)

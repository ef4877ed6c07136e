"""What a pool is behind its face: one breaker for its life, and one lending for the event loop that it is on."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Iterable
from socket import socket
from weakref import WeakSet

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.connect.credentials import Credentials, credentials_for
from asyncdb_guard.connect.session import gone
from asyncdb_guard.errors import ConfigurationError, PoolClosedError
from asyncdb_guard.events import Events, Listener
from asyncdb_guard.pool.lending import Lending
from asyncdb_guard.pool.stats import Counters
from asyncdb_guard.settings import DatabaseSettings

_open: WeakSet[Guard] = WeakSet()
_inherited: list[Lending] = []
_ELSEWHERE = 1.0
"""Seconds for the goodbyes on the loop of another thread."""


def open_guards() -> list[Guard]:
    """The guards of this process that may hold server sessions."""
    return list(_open)


def _remember(guard: Guard) -> None:
    """Keep `guard` among the open ones, whom a forked child shall not disturb."""
    _watch_forks()
    _open.add(guard)


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_disown_all)


def _disown_all() -> None:
    """A child begins without a session: at once, since even its exit could end its parent's."""
    for lending in [guard.lending for guard in open_guards() if guard.lending is not None]:
        # kept for the life of the child: the loop's own finaliser would unregister from the epoll that both share
        _inherited.append(lending)
        lending.disown()
    for guard in open_guards():
        guard.lending = None
    _open.clear()


class Guard:
    """Born closed; follows its caller to another event loop or into a forked child; lives as long as its pool."""

    def __init__(
        self,
        settings: DatabaseSettings | None,
        credentials: Credentials | None,
        listeners: Listener | Iterable[Listener],
    ) -> None:
        self._settings: object = settings  # judged on first use, as a pool may be made at import
        self._own_credentials = credentials
        self._credentials: Credentials | None = None
        self._breaker: CircuitBreaker | None = None
        self.events = Events(listeners)
        self.counters = Counters()
        self.lending: Lending | None = None
        self.closed = False

    @property
    def settings(self) -> DatabaseSettings:
        """The settings, read from the environment on first use. Raises ConfigurationError."""
        if self._settings is None:
            self._settings = DatabaseSettings()
        if not isinstance(self._settings, DatabaseSettings):
            raise ConfigurationError(
                "GuardedPool takes made settings, as in GuardedPool(DatabaseSettings(url=...)); with none it reads the"
                " environment."
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

    def here(self) -> Lending:
        """The lending on the running event loop of this very process, made anew where that is another one.

        Raises PoolClosedError and ConfigurationError.
        """
        lending = self.lending
        if lending is not None and lending.loop is asyncio.get_running_loop() and not lending.closed:
            return lending
        if self.closed:
            raise PoolClosedError
        settings, breaker = self.settings, self.breaker
        if self._credentials is None:
            self._credentials = credentials_for(settings, self._own_credentials)
        leaving = self._leave(lending) if lending is not None else []
        self.lending = Lending(settings, self._credentials, breaker, self.events, self.counters, leaving)
        _remember(self)
        return self.lending

    async def end(self, timeout: float, *, patient: bool) -> None:
        """End all sessions within `timeout` seconds, wherever they are."""
        lending = self.lending
        here = lending is not None and lending.loop is asyncio.get_running_loop()
        if lending is not None and here and not patient:
            # in the same places: whoever asks meanwhile waits until one is vacant
            await lending.disconnect(timeout)
            return
        try:
            if lending is not None and here:
                await lending.close(timeout)
            elif lending is not None:
                for leaving in self._leave(lending):
                    await gone(leaving, timeout)
        finally:
            self.lending = None
            _open.discard(self)

    def _leave(self, lending: Lending) -> list[socket]:
        """Let go of another loop's sessions; return what remains of them."""
        if lending.closed:
            return []
        if lending.loop.is_running():  # in another thread
            asyncio.run_coroutine_threadsafe(lending.close(_ELSEWHERE, patient=False), lending.loop)
            return []
        return lending.abandon()

"""The pools of this process, for those who end it, fork it or measure it."""

from __future__ import annotations

import functools
import os
from typing import Protocol
from weakref import WeakSet

from asyncdb_guard.pool.stats import Totals


class OpenPool(Protocol):
    """A pool that may hold server sessions."""

    def totals(self) -> Totals:
        """Everything counted so far, over all event loops."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether the server may still run a statement that was broken off, or the fleet is still being told."""
        ...

    async def settle(self, timeout: float) -> None:
        """Wait until that is over, for at most `timeout` seconds."""

    async def disconnect(self, timeout: float) -> None:
        """End all sessions within `timeout` seconds."""

    def abandon(self) -> None:
        """Let go of all sessions, without the event loop that they are on."""

    def disown(self) -> None:
        """In a fork: leave all sessions to the parent."""


_open: WeakSet[OpenPool] = WeakSet()
_used: WeakSet[OpenPool] = WeakSet()


def open_pools() -> list[OpenPool]:
    """The pools that may hold server sessions."""
    return list(_open)


def used_pools() -> list[OpenPool]:
    """The pools that have been used, and still exist."""
    return list(_used)


def add(pool: OpenPool) -> None:
    """Remember a pool that opens sessions: a forked child must not disturb it."""
    _watch_forks()
    _open.add(pool)
    _used.add(pool)


def discard(pool: OpenPool) -> None:
    """Forget a pool without sessions."""
    _open.discard(pool)


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_disown_all)


def _disown_all() -> None:
    """A child begins without a session: at once, since even its exit could end its parent's."""
    for pool in open_pools():
        pool.disown()
    _open.clear()
